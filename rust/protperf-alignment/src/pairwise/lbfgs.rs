//! The minimum of a convex function of many variables: L-BFGS from a diagonal guess of the curvature.
//!
//! # Source
//! Nocedal and Wright, Numerical Optimization, 2nd edition, algorithms 7.4 and 7.5.

use protperf_core::{Result, try_copied, try_filled};

/// Steps that are remembered.
const MEMORY: usize = 5;
/// A function that has not converged by then is left where it is.
const MAX_STEPS: usize = 200;
/// Share of the expected decrease with which a step is content.
const DECREASE: f64 = 1e-4;
/// Values closer than this share of them differ by the rounding of their sums.
const ROUNDING: f64 = 1e-7;
/// The shortest step that is tried.
const SHORTEST: f64 = 1e-6;

/// Moves `x` towards the minimum until the gradient is `tolerance` times the first one, or steps no longer help.
///
/// `evaluate(x, gradient)` fills the gradient and returns the value; `scale` is a guess of the inverse of the second
/// derivatives, one per variable.
///
/// # Errors
/// Those of `evaluate`, and `OutOfMemory`.
pub fn minimize(
    x: &mut [f32],
    scale: &[f32],
    tolerance: f64,
    mut evaluate: impl FnMut(&[f32], &mut [f32]) -> Result<f64>,
) -> Result<()> {
    let mut gradient = try_filled(x.len(), 0.0)?;
    let mut value = evaluate(x, &mut gradient)?;
    let enough = tolerance * dot(&gradient, &gradient).sqrt();
    let (mut next, mut next_gradient) = (try_copied(x)?, try_filled(x.len(), 0.0)?);
    let mut direction = try_filled(x.len(), 0.0)?;
    let mut memory = Vec::with_capacity(MEMORY);
    for _ in 0..MAX_STEPS {
        if dot(&gradient, &gradient).sqrt() <= enough {
            break;
        }
        descent(&gradient, scale, &memory, &mut direction);
        let slope = dot(&gradient, &direction);
        let mut length = 1.0;
        let found = loop {
            next.copy_from_slice(x);
            add(length as f32, &direction, &mut next);
            let found = evaluate(&next, &mut next_gradient)?;
            if found <= value + DECREASE * length * slope + ROUNDING * value.abs() {
                break found;
            }
            // The minimum of the parabola through what is known, kept within reason.
            let parabola = -0.5 * slope * length * length / (found - value - slope * length);
            length = parabola.clamp(0.1 * length, 0.5 * length);
            if length < SHORTEST {
                return Ok(());
            }
        };
        remember(&mut memory, [&*x, &next], [&gradient, &next_gradient])?;
        x.copy_from_slice(&next);
        std::mem::swap(&mut gradient, &mut next_gradient);
        value = found;
    }
    Ok(())
}

/// A step that was taken, by how much the gradient changed, and one over their product.
struct Step {
    moved: Vec<f32>,
    change: Vec<f32>,
    inverse: f64,
}

/// Keeps a step, in the place of the oldest one. One along which rounding hides the curvature is not kept.
fn remember(memory: &mut Vec<Step>, x: [&[f32]; 2], gradient: [&[f32]; 2]) -> Result<()> {
    let mut step = if memory.len() == MEMORY {
        memory.remove(0)
    } else {
        Step { moved: try_filled(x[0].len(), 0.0)?, change: try_filled(x[0].len(), 0.0)?, inverse: 0.0 }
    };
    let difference = |[old, new]: [&[f32]; 2], to: &mut [f32]| {
        to.iter_mut().zip(old).zip(new).for_each(|((to, old), new)| *to = new - old);
    };
    difference(x, &mut step.moved);
    difference(gradient, &mut step.change);
    let product = dot(&step.moved, &step.change);
    if product > 0.0 {
        step.inverse = 1.0 / product;
        memory.push(step);
    }
    Ok(())
}

/// The direction of the next step: minus the gradient, times the inverse curvature that the remembered steps show.
fn descent(gradient: &[f32], scale: &[f32], memory: &[Step], direction: &mut [f32]) {
    direction.iter_mut().zip(gradient).for_each(|(to, from)| *to = -from);
    let mut factors = [0.0; MEMORY];
    for (step, factor) in memory.iter().zip(&mut factors).rev() {
        *factor = step.inverse * dot(&step.moved, direction);
        add(-*factor as f32, &step.change, direction);
    }
    let stretch = memory.last().map_or(1.0, |step| {
        let curvature: f64 =
            step.change.iter().zip(scale).map(|(&y, &d)| f64::from(y) * f64::from(y) * f64::from(d)).sum();
        1.0 / (step.inverse * curvature)
    });
    direction.iter_mut().zip(scale).for_each(|(to, scale)| *to *= stretch as f32 * scale);
    for (step, factor) in memory.iter().zip(factors) {
        add((factor - step.inverse * dot(&step.change, direction)) as f32, &step.moved, direction);
    }
}

/// `to += factor * from`.
fn add(factor: f32, from: &[f32], to: &mut [f32]) {
    to.iter_mut().zip(from).for_each(|(to, from)| *to += factor * from);
}

/// The product of two vectors: short sums in f32, one per lane, and their sum in f64.
fn dot(a: &[f32], b: &[f32]) -> f64 {
    const LANES: usize = 16;
    let mut total = 0.0;
    for (a, b) in a.chunks(16 * LANES).zip(b.chunks(16 * LANES)) {
        let mut sums = [0.0f32; LANES];
        for (a, b) in a.chunks(LANES).zip(b.chunks(LANES)) {
            sums.iter_mut().zip(a.iter().zip(b)).for_each(|(sum, (a, b))| *sum += a * b);
        }
        total += f64::from(sums.iter().sum::<f32>());
    }
    total
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A sum of `cosh` with curvatures from 1e-3 to 1e3, coupled by a square.
    fn steep(x: &[f32], gradient: &mut [f32]) -> f64 {
        let sum: f64 = x.iter().map(|&x| f64::from(x) - 1.0).sum();
        let mut value = 0.5 * sum * sum;
        for (i, (&x, gradient)) in x.iter().zip(gradient).enumerate() {
            let (weight, x) = (10f64.powf(i as f64 % 7.0 - 3.0), f64::from(x) - 1.0);
            value += weight * (x.cosh() - 1.0);
            *gradient = (weight * x.sinh() + sum) as f32;
        }
        value
    }

    #[test]
    fn the_minimum_is_found_with_and_without_a_good_guess() {
        for guess in [|_: usize| 1.0f32, |i: usize| 10f32.powf(3.0 - i as f32 % 7.0)] {
            let scale: Vec<f32> = (0..70).map(guess).collect();
            let (mut x, mut calls) = (vec![0.0; 70], 0);
            let mut evaluate = |x: &[f32], gradient: &mut [f32]| {
                calls += 1;
                Ok(steep(x, gradient))
            };
            minimize(&mut x, &scale, 1e-5, &mut evaluate).unwrap();
            assert!(calls < 150, "{calls}");
            let value = steep(&x, &mut [0.0; 70]);
            assert!(value < 1e-3, "{value}");
        }
    }

    #[test]
    fn a_gradient_of_zero_ends_at_once() {
        let (mut x, mut calls) = (vec![2.0; 3], 0);
        minimize(&mut x, &[1.0; 3], 1e-3, |_, gradient| {
            calls += 1;
            gradient.fill(0.0);
            Ok(5.0)
        })
        .unwrap();
        assert_eq!((x, calls), (vec![2.0; 3], 1));
    }
}
