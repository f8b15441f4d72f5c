//! What an answer of a kernel is held to.
//!
//! The bound of an f32 kernel is twice the error of the plain f32 evaluation of the same formula, plus four units in
//! the last place of the largest value; for gradients, of the same sums with the absolute value of every term. Both
//! are measured, so the bound follows how well each input is conditioned. Where the plain evaluation is not finite,
//! an answer must be, and an output must lie in the hull of v.

use super::{Answer, Case, Data, PARTS, is_signed, magnitudes, plain_f32, reference};
use protperf::{CpuElement, Element};

/// Units in the last place that an f32 kernel may be off in addition to twice the plain evaluation's error.
const UNITS: f64 = 4.0;
/// The same for f64 kernels, whose plain evaluation is the reference itself: the logarithms of features carry
/// rounding of their own on both sides.
const UNITS_F64: f64 = 64.0;

/// Largest absolute value.
pub fn largest(x: &[f64]) -> f64 {
    x.iter().fold(0.0, |m, x| m.max(x.abs()))
}

/// Root of the mean square of the errors, over the entries that are finite in truth.
pub fn error(found: &[f64], truth: &[f64]) -> f64 {
    assert_eq!(found.len(), truth.len());
    let finite = || found.iter().zip(truth).filter(|(_, t)| t.is_finite());
    let squares: f64 = finite().map(|(f, t)| (f - t) * (f - t)).sum();
    (squares / finite().count().max(1) as f64).sqrt()
}

/// The truth of one case, rounded to f32 as the kernels see it, and how far from it an answer may be.
pub struct Judge {
    /// The reference's answer.
    pub truth: Answer,
    /// Errors of the plain f32 evaluation.
    pub plain: [f64; 5],
    /// What rounding each part is measured in.
    pub scales: [f64; 5],
    hull: f64,
    case: Case,
}

impl Judge {
    /// A judge of answers to `data`, which must have been rounded to f32.
    pub fn new(case: &Case, data: &Data) -> Self {
        let truth = reference::<f32>(case, data);
        let usable = without_bad_rows(case, data, &truth[0]);
        let found = plain_f32(case, &usable);
        let mut scales = magnitudes(case, &usable).map(|part| largest(&part));
        let hull = largest(&usable.v);
        // Averages with positive weights: no term is larger than the largest value.
        if !is_signed(case.map) {
            scales[0] = hull;
        }
        let plain = [0, 1, 2, 3, 4].map(|part| error(&found[part], &truth[part]));
        Judge { truth, plain, scales, hull, case: case.clone() }
    }

    /// How far from the truth a part of an answer in T may be; `None` where only being finite is asked for.
    pub fn bound<T: Element>(&self, part: usize) -> Option<f64> {
        let is_wide = size_of::<T>() == size_of::<f64>();
        let bound = match is_wide {
            true => UNITS_F64 * f64::EPSILON * self.scales[part],
            false => 2.0 * self.plain[part] + UNITS * f64::from(f32::EPSILON) * self.scales[part],
        };
        bound.is_finite().then_some(bound)
    }

    /// What is wrong with an answer in T, if anything is.
    pub fn check<T: CpuElement>(&self, found: &Answer) -> Result<(), String> {
        for (part, name) in PARTS.into_iter().enumerate() {
            let (found, truth) = (&found[part], &self.truth[part]);
            if let Some(at) = (0..truth.len()).find(|&at| found[at].is_finite() != truth[at].is_finite()) {
                return Err(format!("{name}[{at}] is {} where {} is right", found[at], truth[at]));
            }
            match self.bound::<T>(part) {
                Some(bound) => {
                    let off = error(found, truth);
                    if off > bound {
                        return Err(format!("{name} {off:.2e} above {bound:.2e}"));
                    }
                }
                None if part == 0 && !is_signed(self.case.map) => self.check_hull(found)?,
                None => {}
            }
        }
        Ok(())
    }

    /// What is wrong with an output of positive weights as a mean of values, if anything is.
    pub fn check_hull(&self, out: &[f64]) -> Result<(), String> {
        let most = self.hull * (1.0 + UNITS * f64::from(f32::EPSILON));
        match out.iter().find(|x| x.abs() > most) {
            Some(x) => Err(format!("out {x} outside of the hull {most}")),
            None => Ok(()),
        }
    }
}

/// The data with rows that are not finite set to zero, and no gradient arriving where one was seen: what is finite in
/// truth does not depend on them, and the plain sums would multiply them by zero.
fn without_bad_rows(case: &Case, data: &Data, out: &[f64]) -> Data {
    let mut usable = data.clone();
    for (x, width) in [
        (&mut usable.q, case.head_dim),
        (&mut usable.k, case.head_dim),
        (&mut usable.v, case.value_dim),
        (&mut usable.grad, case.value_dim),
    ] {
        let rows = x.chunks_mut(width.max(1));
        rows.filter(|row| row.iter().any(|x| !x.is_finite())).for_each(|row| row.fill(0.0));
    }
    for (row, out) in usable.grad.chunks_mut(case.value_dim.max(1)).zip(out.chunks(case.value_dim.max(1))) {
        if out.iter().any(|x| !x.is_finite()) {
            row.fill(0.0);
        }
    }
    usable
}
