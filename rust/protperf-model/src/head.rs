//! The head of a training: final norm, tied logits and cross-entropy, with their gradients in the same pass.

use crate::buffer::Buffer;
use crate::linear::{Groups, Panels, outer};
use crate::products::{Arithmetic, Products};
use crate::tiles::Tiles;
use protperf_core::{Error, Execution, Result, check_len};
use protperf_cpu::layout::PAD;
use protperf_cpu::ops::Ops;
use protperf_cpu::{CpuElement, Workers};

/// Tokens of a task.
const TILE: usize = 256;

/// Which tokens predict what.
#[derive(Clone, Copy, Debug)]
pub struct Targets<'a> {
    /// Places among the N tokens, increasing.
    pub positions: &'a [i64],
    /// The token that each of them should predict.
    pub classes: &'a [i64],
}

/// Where gradients of the loss go; overwritten.
#[derive(Debug)]
pub struct HeadGradients<'a, T> {
    /// `[N,C]`.
    pub hidden: &'a mut [T],
    /// `[C]`.
    pub norm: &'a mut [T],
    /// `[V,C]`.
    pub embedding: &'a mut [T],
}

/// The output weights of a network: norm `[C]` and embedding `[V,C]`.
#[derive(Clone, Copy, Debug)]
pub struct HeadWeights<'a, T> {
    /// Gain of the final norm.
    pub norm: &'a [T],
    /// The embedding, which the logits are tied to.
    pub embedding: &'a [T],
}

/// What the tasks of one call share.
struct Head<'a, T: CpuElement> {
    ops: &'static Ops<T>,
    products: Products<T>,
    weights: HeadWeights<'a, T>,
    targets: Targets<'a>,
    weight: T,
    columns: Panels<T>,
    rows: Panels<T>,
    hidden: &'a [T],
}

/// Gradients of the weights over the tokens of one task, and its loss.
struct Sums<T: CpuElement> {
    loss: f64,
    embedding: Buffer<T>,
    norm: Buffer<T>,
}

/// `weight * sum of -log p(class)` over the targets, in nats; where gradients are wanted, also those of this sum.
///
/// # Shapes
/// hidden `[N,C]`: the residual stream after the last block.
///
/// # Errors
/// `InvalidOption` where a position or a class does not exist or positions do not increase; `ShapeMismatch`,
/// `OutOfMemory`, `Interrupted`.
pub fn token_loss<T: CpuElement>(
    arithmetic: impl Into<Arithmetic>,
    hidden: &[T],
    weights: HeadWeights<'_, T>,
    targets: Targets<'_>,
    weight: f64,
    gradients: Option<HeadGradients<'_, T>>,
    run: &Execution<'_>,
) -> Result<f64> {
    let c = weights.norm.len();
    let (tokens, classes) = check(hidden, weights, targets)?;
    let (groups, products) = (Groups::one(classes), Products::new(arithmetic.into())?);
    let head = Head {
        ops: products.ops,
        products,
        weights,
        targets,
        weight: T::from_f64(weight),
        columns: Panels::of_columns(&products, weights.embedding, c, groups)?,
        rows: Panels::of_rows(&products, weights.embedding, c, groups)?,
        hidden,
    };
    let (mut loss, workers) = (0.0, Workers::new(run));
    let Some(gradients) = gradients else {
        workers.fold(
            tokens.div_ceil(TILE),
            |tile| head.tile(tile, None),
            |_, sums| {
                loss += sums.loss;
                Ok(())
            },
        )?;
        return Ok(weight * loss);
    };
    check_len("grad_hidden", gradients.hidden.len(), hidden.len())?;
    check_len("grad_norm", gradients.norm.len(), c)?;
    check_len("grad_embedding", gradients.embedding.len(), classes * c)?;
    gradients.norm.fill(T::ZERO);
    gradients.embedding.fill(T::ZERO);
    let tiles = Tiles::new(gradients.hidden, c, TILE)?;
    workers.fold(
        tokens.div_ceil(TILE),
        |tile| head.tile(tile, Some(&mut tiles.take(tile))),
        |_, sums| {
            loss += sums.loss;
            head.ops.add(&sums.norm, gradients.norm);
            let padded = sums.embedding.chunks_exact(c.next_multiple_of(PAD));
            padded.zip(gradients.embedding.chunks_exact_mut(c)).for_each(|(from, to)| head.ops.add(&from[..c], to));
            Ok(())
        },
    )?;
    Ok(weight * loss)
}

impl<T: CpuElement> Head<'_, T> {
    /// The targets among the tokens of one tile; `grad` is that of the tile's hidden states.
    fn tile(&self, tile: usize, grad: Option<&mut [T]>) -> Result<Sums<T>> {
        let c = self.weights.norm.len();
        let (first, end) = ((tile * TILE) as i64, ((tile + 1) * TILE) as i64);
        let all = self.targets.positions;
        let range = all.partition_point(|&at| at < first)..all.partition_point(|&at| at < end);
        let (positions, targets) = (&all[range.clone()], &self.targets.classes[range]);
        let (rows, classes) = (positions.len(), self.weights.embedding.len() / c);
        if rows == 0 {
            // Such as the end of the last sequence alone: nothing to multiply, and no gradient of the weights.
            if let Some(grad) = grad {
                grad.fill(T::ZERO);
            }
            return Ok(Sums {
                loss: 0.0,
                embedding: Buffer::zeros(classes * c.next_multiple_of(PAD))?,
                norm: Buffer::zeros(c)?,
            });
        }
        let (c_row, logits_row) = (c.next_multiple_of(PAD), self.columns.cols());
        let (mut normed, mut inverses) = (Buffer::new(rows * c_row)?, Buffer::new(rows)?);
        for ((&at, to), inverse) in positions.iter().zip(normed.chunks_exact_mut(c_row)).zip(inverses.iter_mut()) {
            let epsilon = T::from_f64(crate::block::NORM_EPSILON);
            *inverse = self.ops.rms_norm(&self.hidden[at as usize * c..][..c], self.weights.norm, epsilon, to);
        }
        let mut logits = Buffer::new(rows * logits_row)?;
        self.columns.multiply(&self.products, (&normed, c_row), rows, (&mut logits, logits_row))?;
        let (mut loss, mut scratch) = (0.0, Buffer::new(logits_row)?);
        for (row, &target) in logits.chunks_exact_mut(logits_row).zip(targets) {
            self.ops.log_softmax(row, classes, &mut scratch);
            loss -= row[target as usize].to_f64();
            if grad.is_some() {
                self.ops.cross_entropy_gradient(row, classes, target as usize, self.weight);
            }
        }
        let Some(grad) = grad else { return Ok(Sums { loss, embedding: Buffer::new(0)?, norm: Buffer::new(0)? }) };
        let (mut embedding, mut norm) = (Buffer::new(classes * c_row)?, Buffer::zeros(c)?);
        outer(&self.products, (&logits, logits_row, 0), (&normed, c_row), rows, &mut embedding, [classes, c])?;
        self.rows.multiply(&self.products, (&logits, logits_row), rows, (&mut normed, c_row))?;
        grad.fill(T::ZERO);
        for ((&at, arriving), &inverse) in positions.iter().zip(normed.chunks_exact(c_row)).zip(inverses.iter()) {
            let hidden = &self.hidden[at as usize * c..][..c];
            let grad = &mut grad[(at - first) as usize * c..][..c];
            self.ops.rms_norm_gradient(hidden, self.weights.norm, inverse, &arriving[..c], grad, &mut norm);
        }
        Ok(Sums { loss, embedding, norm })
    }
}

/// Tokens and classes.
fn check<T>(hidden: &[T], weights: HeadWeights<'_, T>, targets: Targets<'_>) -> Result<(usize, usize)> {
    let c = weights.norm.len();
    if c == 0 || weights.embedding.is_empty() || !weights.embedding.len().is_multiple_of(c) {
        return Err(Error::shape("embedding", "must be [V,C] with the C of norm, both at least 1"));
    }
    let (tokens, classes) = (hidden.len() / c, weights.embedding.len() / c);
    check_len("hidden", hidden.len(), tokens * c)?;
    check_len("targets", targets.classes.len(), targets.positions.len())?;
    if let Some(class) = targets.classes.iter().find(|&&class| class < 0 || class >= classes as i64) {
        return Err(Error::option("targets", format!("holds {class}; classes run from 0 to {}", classes - 1)));
    }
    let mut after = -1;
    for &at in targets.positions {
        if at <= after || at >= tokens as i64 {
            let detail = format!("holds {at} after {after}; positions must increase and stay below {tokens}");
            return Err(Error::option("positions", detail));
        }
        after = at;
    }
    Ok((tokens, classes))
}
