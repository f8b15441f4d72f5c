//! The reference as a backend: computes in f64, rounds at the end.

use super::{Reference, States, favor_backward_from, favor_forward_from};
use crate::attention::{FavorArgs, recurrent::Denominator};
use crate::backend::{Backend, Execution, Gradients, Outputs, Saved};
use crate::element::{Element, Stored};
use crate::error::Result;
use crate::memory::{try_filled, try_reserved};
use std::sync::atomic::Ordering;

impl<T: Stored> Backend<T> for Reference {
    fn name(&self) -> &'static str {
        "reference"
    }

    fn forward(&self, args: &FavorArgs<'_, T>, outputs: Outputs<'_, T>, run: &Execution<'_>) -> Result<()> {
        let shape = args.validate()?;
        outputs.check(&shape)?;
        let initial = outputs.state_in.map(widened).transpose()?;
        let mut state = match &outputs.state_out {
            Some(state) => Some(try_filled(state.len(), 0.0)?),
            None => None,
        };
        let stop = || run.cancel.load(Ordering::Relaxed);
        let found = favor_forward_from(args, initial.as_deref(), state.as_deref_mut(), &stop)?;
        store(&found.out, outputs.out);
        for (Denominator { exponent, mantissa }, to) in found.denominators.iter().zip(outputs.den.chunks_exact_mut(2)) {
            to.copy_from_slice(&[*exponent as f64, *mantissa].map(T::Compute::from_f64));
        }
        if let (Some(state), Some(to)) = (&state, outputs.state_out) {
            store(state, to);
        }
        Ok(())
    }

    /// The saved output and denominators are not read: they are computed again from the inputs.
    fn backward(
        &self,
        args: &FavorArgs<'_, T>,
        saved: &Saved<'_, T>,
        gradients: Gradients<'_, T>,
        run: &Execution<'_>,
    ) -> Result<()> {
        let shape = args.validate()?;
        saved.check(&shape)?;
        gradients.check(args, &shape)?;
        let initial = saved.state_in.map(widened).transpose()?;
        let last = match saved.final_state {
            Some(last) => Some((widened(last.state)?, widened(last.grad)?)),
            None => None,
        };
        let states = States {
            initial: initial.as_deref(),
            final_with_grad: last.as_ref().map(|(state, grad)| (state.as_slice(), grad.as_slice())),
        };
        let stop = || run.cancel.load(Ordering::Relaxed);
        let found = favor_backward_from(args, &saved.grad, states, &stop)?;
        store(&found.dq, gradients.dq);
        store(&found.dk, gradients.dk);
        store(&found.dv, gradients.dv);
        if let Some(to) = gradients.state_in {
            store(&found.state_in, to);
        }
        match gradients.map {
            Some(to) => found.write_map_gradients(args, to),
            None => Ok(()),
        }
    }
}

fn widened<C: Element>(from: &[C]) -> Result<Vec<f64>> {
    let mut wide = try_reserved(from.len())?;
    wide.extend(from.iter().map(|x| x.to_f64()));
    Ok(wide)
}

fn store<T: Stored>(from: &[f64], to: &mut [T]) {
    to.iter_mut().zip(from).for_each(|(to, &x)| *to = T::round(T::Compute::from_f64(x)));
}
