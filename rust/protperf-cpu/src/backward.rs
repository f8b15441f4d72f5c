//! The backward pass: queries read the keys' state for their own gradient and write their cotangents into another,
//! which keys read for theirs; when causal, the second in reversed time.
//!
//! Only out and the denominators are kept from the forward pass; features are computed again. With the denominator
//! of row i as `p 2^T`, the cotangent of its sums is `[g, -g.out] / p`, and the row's features lose `2^T`: both
//! scalings are exact or harmless, and every weight that is formed is at most about 1. Lines are cut into blocks as in
//! the forward pass.

mod block;
mod cut;

use crate::blocks::MOST_BLOCKS;
use crate::call::{Call, Context, Line, SharedOut, check_len};
use crate::cotangent::{Cotangents, Saved};
use crate::ops::{CpuElement, PANEL};
use crate::sweep::Sweep;
use crate::workspace::{try_filled, try_reserved};
use protperf_core::{FavorArgs, Result};

/// Gradients to fill: dq `[B,H,L,D]`, dk `[B,Hk,S,D]`, dv `[B,Hk,S,E]`, domega as omega.
pub struct Gradients<'a, E> {
    pub dq: &'a mut [E],
    pub dk: &'a mut [E],
    pub dv: &'a mut [E],
    pub domega: Option<&'a mut [f64]>,
}

/// Gradients of linear attention on the CPU.
///
/// A row whose incoming gradient is all zeros contributes nothing, even where its output is NaN. A row with a
/// gradient that saw something not finite makes NaN of its dq and of dk, dv of every key it sees.
///
/// Working memory beside inputs and outputs is as in [`crate::favor_forward`], with a byte a query, two states a block
/// where a causal line is cut, and an omega for each thread where `domega` is wanted. Where query heads share a key
/// head, the features of its keys are made again for each of them: they are never kept.
///
/// # Errors
/// As [`FavorArgs::validate`]; `OutOfMemory`; `Interrupted`.
pub fn favor_backward<E: CpuElement>(
    args: &FavorArgs<'_, E>,
    saved: &Saved<'_, E>,
    gradients: Gradients<'_, E>,
    ctx: &Context<'_>,
) -> Result<()> {
    let call = Call::new(args, ctx)?;
    let s = call.shape;
    for (argument, tensor) in [("out", saved.out), ("grad", saved.grad)] {
        if tensor.shape() != s.out() {
            let detail = format!("has shape {:?} but the output has {:?}", tensor.shape(), s.out());
            return Err(protperf_core::Error::ShapeMismatch { argument, detail });
        }
    }
    check_len("den", saved.den.len(), s.batch * s.heads * s.q_len * 2)?;
    check_len("dq", gradients.dq.len(), s.batch * s.heads * s.q_len * s.head_dim)?;
    check_len("dk", gradients.dk.len(), s.batch * s.kv_heads * s.kv_len * s.head_dim)?;
    check_len("dv", gradients.dv.len(), s.batch * s.kv_heads * s.kv_len * s.value_dim)?;
    let pass = Backward {
        call: &call,
        saved,
        directions: gradients.domega.is_some(),
        dq: SharedOut::new(gradients.dq),
        dk: SharedOut::new(gradients.dk),
        dv: SharedOut::new(gradients.dv),
    };
    let mut sums = Directions::new(&call, pass.directions)?;
    let (mut cut, mut whole) = call.lines()?;
    if !args.causal && s.group() > 1 && whole.len() < MOST_BLOCKS {
        // One task would do all query heads of a key head; the numbers are the same either way.
        cut.append(&mut whole);
    }
    match args.causal {
        true => pass.cut_causal(&cut, &mut sums)?,
        false => pass.cut_noncausal(&cut, &mut sums)?,
    }
    pass.whole(&whole, &mut sums)?;
    gradients.domega.map_or(Ok(()), |domega| sums.carry_back(&call, domega))
}

/// The gradient of the directions that one task has summed, with the head it belongs to.
type Part<E> = Option<(usize, Vec<E>)>;

/// Sums of the tasks' gradients of the directions, in the order of the tasks.
struct Directions {
    head_dim: usize,
    padded_head: usize,
    /// Of each matrix of omega.
    totals: Vec<Vec<f64>>,
}

impl Directions {
    fn new<E: CpuElement>(call: &Call<'_, E>, wanted: bool) -> Result<Self> {
        let (head_dim, padded_head) = (call.shape.head_dim, call.widths.padded_head());
        let count = if wanted { call.num_matrices() } else { 0 };
        let totals = (0..count).map(|_| try_filled(call.widths.projections * head_dim, 0.0));
        Ok(Directions { head_dim, padded_head, totals: totals.collect::<Result<_>>()? })
    }

    fn add<E: CpuElement>(&mut self, parts: impl IntoIterator<Item = (usize, Vec<E>)>) {
        let shared = self.totals.len() == 1;
        for (head, part) in parts {
            let total = self.totals[if shared { 0 } else { head }].chunks_exact_mut(self.head_dim);
            for (total, part) in total.zip(part.chunks_exact(self.padded_head)) {
                total.iter_mut().zip(part).for_each(|(total, part)| *total += part.to_f64());
            }
        }
    }

    /// From directions as the sweeps use them to omega.
    fn carry_back<E: CpuElement>(mut self, call: &Call<'_, E>, domega: &mut [f64]) -> Result<()> {
        let Some(omega) = &call.args.omega else { return Ok(()) };
        let size = omega.num_features * self.head_dim;
        check_len("domega", domega.len(), self.totals.len() * size)?;
        domega.fill(0.0);
        let scale = call.widths.input_scale();
        for ((index, total), domega) in self.totals.iter_mut().enumerate().zip(domega.chunks_exact_mut(size)) {
            total.iter_mut().for_each(|x| *x *= scale);
            call.args.feature_map.add_omega_gradient(omega.head(index), self.head_dim, total, domega);
        }
        Ok(())
    }
}

struct Backward<'a, E: CpuElement> {
    call: &'a Call<'a, E>,
    saved: &'a Saved<'a, E>,
    directions: bool,
    dq: SharedOut<E>,
    dk: SharedOut<E>,
    dv: SharedOut<E>,
}

impl<'a, E: CpuElement> Backward<'a, E> {
    /// Lines that are not cut: all of a key head is one task, or two where the sums run both ways.
    fn whole(&self, lines: &[Line], sums: &mut Directions) -> Result<()> {
        let group = self.call.shape.group().max(1);
        let mut groups = try_reserved(lines.len().div_ceil(group))?;
        groups.extend(lines.chunks(group));
        let queries = if self.call.args.causal { lines.len() } else { 0 };
        self.call.fold(
            groups.len() + queries,
            |task| match groups.get(task) {
                Some(lines) => self.whole_keys(lines),
                None => {
                    let line = &lines[task - groups.len()];
                    let keys = self.call.keys(line);
                    let facts = self.call.facts(&keys, 0..keys.keys.len)?;
                    self.causal_queries(line, &facts, 0..keys.keys.len, None).map(Vec::from_iter)
                }
            },
            |_, parts| {
                sums.add(parts);
                Ok(())
            },
        )
    }

    /// The query heads of one key head: dk and dv, and dq too where the sums run one way.
    fn whole_keys(&self, lines: &[Line]) -> Result<Vec<(usize, Vec<E>)>> {
        let (call, keys) = (self.call, self.call.keys(&lines[0]));
        let range = 0..keys.keys.len;
        let facts = call.facts(&keys, range.clone())?;
        let mut block = self.key_block(&lines[0], &facts, range.clone());
        let mut parts = Vec::new();
        for line in lines {
            if call.args.causal {
                let rows = Cotangents::new(call, self.saved, line, range.clone(), facts.bad)?;
                parts.extend(block.causal(self, line, &rows, None)?);
                block.poison(rows.last_bad);
                continue;
            }
            let last_bad = call.with_sweep(line.head, |sweep| {
                self.begin(sweep)?;
                if facts.bad.is_none() {
                    call.absorb_keys(sweep, &keys, E::ONE)?;
                }
                let queries = call.query_blocks(line).range(0);
                let last_bad = self.noncausal_queries(sweep, line, &facts, queries)?;
                std::mem::swap(&mut sweep.buffers.state, &mut sweep.buffers.other);
                block.noncausal(sweep, self.directions)?;
                parts.extend(self.taken(line, sweep, last_bad.is_some())?);
                Ok(last_bad)
            })?;
            block.poison(last_bad);
        }
        Ok(parts)
    }

    /// Makes a sweep ready to sum gradients of the directions.
    fn begin(&self, sweep: &mut Sweep<'_, E>) -> Result<()> {
        if self.directions {
            let len = self.call.widths.projection_panels() * PANEL * self.call.widths.padded_head();
            if sweep.buffers.direction_gradient.len() != len {
                sweep.buffers.direction_gradient = try_filled(len, E::ZERO)?;
            }
            sweep.buffers.direction_gradient.fill(E::ZERO);
        }
        Ok(())
    }

    /// The gradient of the directions that a sweep has summed.
    fn taken(&self, line: &Line, sweep: &Sweep<'_, E>, bad: bool) -> Result<Part<E>> {
        if !self.directions {
            return Ok(None);
        }
        let found = &sweep.buffers.direction_gradient;
        let mut part = try_filled(found.len(), E::from_f64(f64::NAN))?;
        if !bad {
            part.copy_from_slice(found);
        }
        Ok(Some((line.head, part)))
    }
}
