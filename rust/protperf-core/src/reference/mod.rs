//! The plain f64 reference of linear attention, forward and backward: the judge of every fast form.
//!
//! It is written to be read, not to be fast: one row after another, every feature kept, references exact. It computes
//! in f64 for every type that tensors are stored in; [`Reference`] is the same as a backend, rounding at the end.

mod backend;
mod segment;

use crate::attention::features::HeadMap;
use crate::attention::recurrent::Denominator;
use crate::attention::rows::{InputGradients, Inputs, Place, check_grad};
use crate::attention::{FavorArgs, FavorShape, MapArgs, MapGradients};
use crate::element::Stored;
use crate::error::Result;
use crate::feature_map::Parameters;
use crate::memory::{check_len, try_filled};
use crate::tensor::TensorRef;
use segment::{Initial, SegmentFeatures};

/// The reference as a backend.
#[derive(Clone, Copy, Debug, Default)]
pub struct Reference;

/// What the forward pass computes, contiguous.
#[derive(Clone, Debug)]
pub struct Forward {
    /// `[B,H,L,E]`.
    pub out: Vec<f64>,
    /// `[B,H,L]`.
    pub denominators: Vec<Denominator>,
}

/// What the backward pass computes, contiguous.
#[derive(Clone, Debug, PartialEq)]
pub struct Gradients {
    /// `[B,H,L,D]`.
    pub dq: Vec<f64>,
    /// `[B,Hk,S,D]`.
    pub dk: Vec<f64>,
    /// `[B,Hk,S,E]`.
    pub dv: Vec<f64>,
    /// Of a named map's omega; `None` where there is none.
    pub domega: Option<Vec<f64>>,
    /// Of the sets of parameters that were given themselves; empty for a named map.
    pub parameters: Vec<Parameters<Vec<f64>>>,
    /// Of the initial state, in the format of states; empty where there is none.
    pub state_in: Vec<f64>,
}

/// States that a pass begins and ends with, in the format of [`crate::state`].
#[derive(Clone, Copy, Debug, Default)]
pub struct States<'a> {
    /// The state before the first key; `None`: the empty one.
    pub initial: Option<&'a [f64]>,
    /// For the backward pass, the state after the last key and the gradient that arrives at it.
    pub final_with_grad: Option<(&'a [f64], &'a [f64])>,
}

/// `sum_j phi(q_i).phi(k_j) v_j / sum_j phi(q_i).phi(k_j)` over the keys that row i sees.
///
/// A zero denominator gives 0. A row of q, k or v that is not finite makes NaN of every output that sees it; a number
/// of omega that is not finite, of every output of its heads.
///
/// # Errors
/// As [`FavorArgs::validate`].
///
/// # Source
/// Choromanski et al. 2021, arXiv:2009.14794, equations 4 to 6.
pub fn favor_forward<T: Stored>(args: &FavorArgs<'_, T>) -> Result<Forward> {
    favor_forward_from(args, None, None, &|| false)
}

/// [`favor_forward`] from a state: queries read it in addition to the keys they see. Fills the state after all keys.
///
/// # Shapes
/// States `[B,H,F,2+E]`, or `[num_segments,H,F,2+E]` for packed sequences.
///
/// # Errors
/// As [`FavorArgs::validate`]; [`crate::Error::ShapeMismatch`]; [`crate::Error::Interrupted`].
pub fn favor_forward_from<T: Stored>(
    args: &FavorArgs<'_, T>,
    initial: Option<&[f64]>,
    mut state_out: Option<&mut [f64]>,
    should_stop: &dyn Fn() -> bool,
) -> Result<Forward> {
    let shape = args.validate()?;
    check_state("state_in", initial, &shape)?;
    check_state("state_out", state_out.as_deref(), &shape)?;
    let (inputs, maps) = (inputs_of(args), Maps::new(args, &shape)?);
    let rows = shape.batch * shape.heads * shape.q_len;
    let mut result = Forward {
        out: try_filled(rows * shape.value_dim, 0.0)?,
        denominators: try_filled(rows, Denominator { exponent: 0, mantissa: 0.0 })?,
    };
    for place in inputs.places(&shape) {
        let segment = maps.segment(&inputs, &shape, place, initial, should_stop)?;
        let (outputs, state) = segment.forward();
        let first = (place.batch * shape.heads + place.head) * shape.q_len + place.q_start;
        result.out[first * shape.value_dim..][..outputs.out.len()].copy_from_slice(&outputs.out);
        result.denominators[first..][..place.q_len].copy_from_slice(&outputs.denominators);
        if let Some(all) = &mut state_out {
            let own = own_state(&shape, &place);
            match segment.rows.is_state_bad() {
                true => all[own].fill(f64::NAN),
                false => state.export(&mut all[own]),
            }
        }
    }
    Ok(result)
}

/// Gradients of [`favor_forward`].
///
/// A row of `grad` that is all zeros contributes nothing, even where its output is NaN. A row with a gradient that
/// saw something that is not finite makes NaN of its dq, of dk and dv of every key it sees, and of its head's domega.
///
/// # Shapes
/// grad `[B,H,L,E]`.
///
/// # Errors
/// As [`FavorArgs::validate`].
pub fn favor_backward<T: Stored>(args: &FavorArgs<'_, T>, grad: &TensorRef<'_, T>) -> Result<Gradients> {
    favor_backward_from(args, grad, States::default(), &|| false)
}

/// Gradients of [`favor_forward_from`], those of the initial state among them.
///
/// References are constants: the gradient of a state's sums is that of the sums relative to `2^reference`. What
/// arrives at a final state that is not finite, or is itself not finite, makes NaN of every gradient of its head
/// segment but dq.
///
/// # Errors
/// As [`favor_forward_from`].
pub fn favor_backward_from<T: Stored>(
    args: &FavorArgs<'_, T>,
    grad: &TensorRef<'_, T>,
    states: States<'_>,
    should_stop: &dyn Fn() -> bool,
) -> Result<Gradients> {
    let shape = args.validate()?;
    check_grad(grad, &shape)?;
    check_state("state_in", states.initial, &shape)?;
    check_state("state_out", states.final_with_grad.map(|(state, _)| state), &shape)?;
    check_state("grad_state", states.final_with_grad.map(|(_, grad)| grad), &shape)?;
    let (inputs, maps) = (inputs_of(args), Maps::new(args, &shape)?);
    let mut of_inputs = InputGradients::zeros(&shape)?;
    let mut of_map = maps.zero_gradients()?;
    let mut state_in = try_filled(states.initial.map_or(0, <[f64]>::len), 0.0)?;
    for place in inputs.places(&shape) {
        let segment = maps.segment(&inputs, &shape, place, states.initial, should_stop)?;
        let own = own_state(&shape, &place);
        let arriving = states.final_with_grad.map(|(last, grad)| (&last[own.clone()], &grad[own.clone()]));
        let mut found = segment.backward(grad, arriving)?;
        segment.poison(&mut found, &shape);
        of_inputs.add_segment(&shape, &place, [&found.dq, &found.dk, &found.dv]);
        of_map.add_segment(&maps, place.head, &found.parameters, found.is_any_bad());
        if states.initial.is_some() {
            found.write_state_gradient(&segment.initial, &mut state_in[own]);
        }
    }
    let InputGradients { dq, dk, dv } = of_inputs;
    Ok(Gradients { dq, dk, dv, domega: of_map.domega, parameters: of_map.sets, state_in })
}

impl Gradients {
    /// Writes the gradients of the map's parameters where a caller wants them.
    fn write_map_gradients<T: Stored>(&self, args: &FavorArgs<'_, T>, to: MapGradients<'_>) -> Result<()> {
        match (&self.domega, to) {
            (Some(domega), MapGradients::Omega(to)) => to.copy_from_slice(domega),
            (_, to) => args.map.write_gradients(&self.parameters, to)?,
        }
        Ok(())
    }
}

/// The feature map of every set of parameters of a call.
struct Maps<'a> {
    args: MapArgs<'a>,
    sets: Vec<HeadMap>,
}

/// Sums of gradients of the map's parameters over head segments.
struct MapSums {
    domega: Option<Vec<f64>>,
    sets: Vec<Parameters<Vec<f64>>>,
}

impl<'a> Maps<'a> {
    fn new<T: Stored>(args: &FavorArgs<'a, T>, shape: &FavorShape) -> Result<Self> {
        let map_of = |set| {
            let map = HeadMap::of_call(&args.map, set, shape.head_dim)?;
            // Everything that such a head computes is NaN or, where no gradient arrives, 0; 0 times NaN would be neither.
            Ok(if args.map.is_finite(set) { map } else { map.zeroed() })
        };
        Ok(Maps { args: args.map, sets: (0..args.map.num_sets()).map(map_of).collect::<Result<_>>()? })
    }

    fn segment<T: Stored>(
        &self,
        inputs: &Inputs<'_, T>,
        shape: &FavorShape,
        place: Place,
        initial: Option<&[f64]>,
        should_stop: &dyn Fn() -> bool,
    ) -> Result<SegmentFeatures<'_>> {
        let set = self.args.set_of(place.head);
        let initial = Initial::new(initial.map(|all| &all[own_state(shape, &place)]), shape);
        let mut rows = inputs.rows(place, should_stop)?;
        rows.all_bad = !initial.is_finite || !self.args.is_finite(set);
        Ok(SegmentFeatures::new(&self.sets[set], shape, rows, initial.state))
    }

    fn zero_gradients(&self) -> Result<MapSums> {
        match &self.args {
            MapArgs::Named { omega, .. } => {
                let domega = omega.map(|omega| try_filled(omega.data.len(), 0.0)).transpose()?;
                Ok(MapSums { domega, sets: Vec::new() })
            }
            MapArgs::LogLinear(_) => {
                let sets = self.sets.iter().map(HeadMap::zero_gradient).collect::<Result<_>>()?;
                Ok(MapSums { domega: None, sets })
            }
        }
    }
}

impl MapSums {
    /// Adds the gradient of the parameters that a head segment has.
    fn add_segment(&mut self, maps: &Maps<'_>, head: usize, gradient: &Parameters<Vec<f64>>, is_bad: bool) {
        let set = maps.args.set_of(head);
        if let (MapArgs::Named { map, omega: Some(omega), .. }, Some(domega)) = (&maps.args, &mut self.domega) {
            let size = omega.num_features * omega.head_dim;
            let domega = &mut domega[set * size..][..size];
            if is_bad {
                domega.fill(f64::NAN);
            }
            map.add_omega_gradient(omega.head(set), omega.head_dim, gradient, domega);
        }
        if let Some(sums) = self.sets.get_mut(set) {
            if is_bad {
                sums.fields_mut().for_each(|field| field.fill(f64::NAN));
            }
            sums.add(gradient);
        }
    }
}

/// Where a head segment's state lies among all states.
fn own_state(shape: &FavorShape, place: &Place) -> std::ops::Range<usize> {
    let [_, heads, features, width] = shape.state();
    let state = (place.batch * shape.num_segments + place.segment) * heads + place.head;
    state * features * width..(state + 1) * features * width
}

fn check_state(argument: &'static str, state: Option<&[f64]>, shape: &FavorShape) -> Result<()> {
    state.map_or(Ok(()), |state| check_len(argument, state.len(), shape.state().iter().product()))
}

fn inputs_of<'a, T: Stored>(args: &FavorArgs<'a, T>) -> Inputs<'a, T> {
    Inputs {
        q: args.q,
        k: args.k,
        v: args.v,
        causal: args.causal,
        cu_seqlens: args.cu_seqlens,
        key_padding_mask: args.key_padding_mask,
    }
}
