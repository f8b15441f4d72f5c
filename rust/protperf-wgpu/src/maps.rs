//! The feature map of a call as the shaders take it.

use protperf_core::{Activation, Family, MapArgs, Parameters, Result, try_filled};
use std::f64::consts::LOG2_E;

/// Scaled inputs saturate here, so that every product of them is finite.
const INPUT_LIMIT: f64 = 1e15;

/// Numbers of the families that are not activation maps; [`family_number`].
pub const EXPONENTIAL: u32 = 0;
pub const TRIGONOMETRIC: u32 = 3;

/// Queries or keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    Queries,
    Keys,
}

/// A map with the parameters of all its sets.
pub struct Map {
    pub family: Family,
    /// As [`family_number`].
    pub family_number: u32,
    pub epsilon: f32,
    /// Per set directions `[P,D]`, constants `[P]` and factors of squares `[D]`, of queries and of keys.
    pub packed: [Vec<f32>; 2],
    /// Sets with a number that is not finite; the device gets zeros in their place.
    pub is_bad: Vec<bool>,
    /// D^-1/4, which directions and factors of squares carry.
    pub input_scale: f64,
}

impl Map {
    /// # Errors
    /// `OutOfMemory`.
    pub fn new(args: &MapArgs<'_>, head_dim: usize, num_projections: usize) -> Result<Self> {
        let mut map = Map {
            family: args.family(),
            family_number: family_number(args.family()),
            epsilon: args.kernel_epsilon() as f32,
            packed: [Vec::new(), Vec::new()],
            is_bad: Vec::new(),
            input_scale: (head_dim as f64).powf(-0.25),
        };
        for set in 0..args.num_sets() {
            let parameters = args.parameters(set, head_dim)?;
            let sides =
                [Side::Queries, Side::Keys].map(|side| map.pack(&parameters, [num_projections, head_dim], side));
            let is_finite = args.is_finite(set) && sides.iter().flatten().all(|x| x.is_finite());
            map.is_bad.push(!is_finite);
            for (all, own) in map.packed.iter_mut().zip(sides) {
                all.extend(if is_finite { own } else { try_filled(own.len(), 0.0)? });
            }
        }
        Ok(map)
    }

    /// The largest magnitude of an input before it is scaled.
    pub fn input_limit(&self) -> f32 {
        (INPUT_LIMIT / self.input_scale) as f32
    }

    /// What the sum of weighted squares is multiplied with to give h in bits.
    pub fn norm_factor(&self, side: Side) -> f32 {
        match (self.family, side) {
            (Family::Activation(_), _) | (_, Side::Queries) => 0.0,
            _ => (0.5 * LOG2_E) as f32,
        }
    }

    /// The gradient of h over that of the features.
    pub fn norm_sign(&self, side: Side) -> f32 {
        match (self.family, side) {
            (Family::Activation(_), _) | (_, Side::Queries) => 0.0,
            (Family::Exponential, Side::Keys) => -1.0,
            (Family::Trigonometric, Side::Keys) => 1.0,
        }
    }

    /// What directions carry besides the scale of the inputs: log-features are in bits.
    pub fn unit(&self) -> f64 {
        if self.family == Family::Exponential { LOG2_E } else { 1.0 }
    }

    fn pack(&self, parameters: &Parameters<Vec<f64>>, [num_projections, head_dim]: [usize; 2], side: Side) -> Vec<f32> {
        let (directions, constants) = match side {
            Side::Queries => (&parameters.query_directions[..], &parameters.query_constants),
            Side::Keys => (parameters.of_keys(), &parameters.key_constants),
        };
        let (unit, scale) = (self.unit(), self.input_scale);
        let mut packed: Vec<f32> = directions.iter().map(|w| (w * unit * scale) as f32).collect();
        match constants {
            Some(constants) => packed.extend(constants.iter().map(|c| (c * unit) as f32)),
            None => packed.extend(std::iter::repeat_n(0.0, num_projections)),
        }
        match &parameters.key_quadratic {
            Some(quadratic) => packed.extend(quadratic.iter().map(|g| (g * scale * scale) as f32)),
            None => packed.extend(std::iter::repeat_n((scale * scale) as f32, head_dim)),
        }
        packed
    }
}

/// The number by which the shaders know a family: the twin of the constants in `shaders/prelude.wgsl`.
fn family_number(family: Family) -> u32 {
    match family {
        Family::Exponential => EXPONENTIAL,
        Family::Activation(Activation::Relu) => 1,
        Family::Activation(Activation::Elu1) => 2,
        Family::Trigonometric => TRIGONOMETRIC,
        Family::Activation(Activation::Abs) => 4,
        Family::Activation(Activation::Relu2) => 5,
        Family::Activation(Activation::Square) => 6,
        Family::Activation(Activation::Sigmoid) => 7,
        Family::Activation(Activation::Tanh) => 8,
        Family::Activation(Activation::Gelu) => 9,
        Family::Activation(Activation::Cos) => 10,
        Family::Activation(Activation::Identity) => 11,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use protperf_core::FeatureMap;

    /// A number that no shader knows would be computed as the identity without a word.
    #[test]
    fn every_activation_has_its_number_and_its_case_in_the_shaders() {
        let (prelude, project) = (include_str!("shaders/prelude.wgsl"), include_str!("shaders/project.wgsl"));
        let activation = project.split_once("fn activation(").expect("the function").1;
        for map in FeatureMap::ALL {
            let Family::Activation(kind) = map.family() else { continue };
            let name = format!("{kind:?}").to_uppercase();
            let number = family_number(map.family());
            assert!(prelude.contains(&format!("const {name} = {number}u;")), "{name} = {number}");
            let is_a_case = activation.contains(&format!("case {name}: {{"));
            assert_eq!(is_a_case, kind != Activation::Identity, "{name}");
        }
    }
}
