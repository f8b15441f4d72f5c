//! Scratch memory: asked for with an error instead of an abort, kept by each thread for the next task.

use crate::ops::{CpuElement, PAD, PANEL};
use crate::state::State;
use crate::weights::Widths;
use protperf_core::{Error, Result};
use std::any::Any;
use std::cell::RefCell;

#[cfg(test)]
mod poisoned;

/// Rows of one chunk. It decides the order of sums, so it is a constant: never the cache, the ISA or the threads.
pub const CHUNK: usize = 64;

/// An empty vector with room for `len`.
///
/// # Errors
/// [`Error::OutOfMemory`].
pub fn try_reserved<T>(len: usize) -> Result<Vec<T>> {
    let mut reserved = Vec::new();
    reserved.try_reserve_exact(len).map_err(|_| Error::OutOfMemory { bytes: len.saturating_mul(size_of::<T>()) })?;
    Ok(reserved)
}

/// A vector of `len` copies.
///
/// # Errors
/// [`Error::OutOfMemory`].
pub fn try_filled<T: Clone>(len: usize, value: T) -> Result<Vec<T>> {
    let mut filled = try_reserved(len)?;
    filled.resize(len, value);
    Ok(filled)
}

/// Rows of one chunk on one side of the attention, in the units of the sweeps.
pub struct Side<E> {
    /// Inputs `[CHUNK][input_row]`: the row, then minus the norm term.
    pub x: Vec<E>,
    /// Projections in panels, `[panel][CHUNK][PANEL]`: log-features in bits, or cosines and sines, or plain.
    pub y: Vec<E>,
    /// Log of the row's own factor in bits (trigonometric keys), else 0.
    pub log: Vec<E>,
    /// Integer exponent taken off every feature of the row.
    pub shift: Vec<E>,
    /// False: the row is padding and counts as absent.
    pub live: Vec<bool>,
    /// What the row carries `[CHUNK][payload_row]`: a value and 1, or a cotangent.
    pub payload: Vec<E>,
    /// False: the row's input holds something that is not finite.
    pub finite: Vec<bool>,
    /// One row, or two of the output's, whose elements lie apart in the caller's memory.
    pub gathered: Vec<E>,
}

/// Buffers of one task.
pub struct Scratch<E> {
    pub widths: Widths,
    pub writer: Side<E>,
    pub reader: Side<E>,
    /// Features of the writers, `[panel][CHUNK][PANEL]`.
    pub written: Vec<E>,
    /// Features of the readers, one panel.
    pub read: Vec<E>,
    /// A transposed panel.
    pub turned: Vec<E>,
    /// Scores `[CHUNK][CHUNK]` and their cotangents.
    pub scores: Vec<E>,
    pub score_gradient: Vec<E>,
    /// Payload of the writers, transposed `[payload_row][CHUNK]`.
    pub payload_turned: Vec<E>,
    /// Results of a chunk: numerators `[CHUNK][payload_row]`, denominators, row exponents.
    pub numerator: Vec<E>,
    pub denominator: Vec<E>,
    pub exponent: Vec<E>,
    /// Lanes of running row sums and row maxima `[CHUNK][PAD]`.
    pub lanes: Vec<E>,
    pub norms: Vec<E>,
    pub tops: Vec<E>,
    /// Gradient of features, two panels, and of inputs `[CHUNK][padded_head]`.
    pub gradient: Vec<E>,
    pub input_gradient: Vec<E>,
    /// Gradients of projections of rows that are computed again, `[panel][CHUNK][PANEL]`, and their `norms`.
    pub stash: Vec<E>,
    pub stashed_norms: Vec<E>,
    /// Row factors of the scalar-reference families.
    pub factor: Vec<E>,
    /// The running state and, where a chunk raised a reference far, its copy from before.
    pub state: State<E>,
    pub before: State<E>,
    /// Running sums of another kind beside those that are read.
    pub other: State<E>,
    /// Whether `before` is such a copy; its references are always those from before.
    pub far: bool,
    /// Features of the writers of one panel for a row that is computed again.
    pub spare: Vec<E>,
    /// References of a chunk or a row.
    pub reference: Vec<E>,
    /// Differences of references.
    pub power: Vec<E>,
    /// Gradient of the directions `[projections padded][padded_head]`.
    pub direction_gradient: Vec<E>,
}

impl<E: CpuElement> Side<E> {
    fn new(widths: &Widths) -> Result<Self> {
        Ok(Side {
            x: try_filled(CHUNK * widths.input_row(), E::ZERO)?,
            y: try_filled(widths.panels() * CHUNK * PANEL, E::ZERO)?,
            log: try_filled(CHUNK, E::ZERO)?,
            shift: try_filled(CHUNK, E::ZERO)?,
            live: try_filled(CHUNK, true)?,
            payload: try_filled(CHUNK * widths.payload_row(), E::ZERO)?,
            finite: try_filled(CHUNK, true)?,
            gathered: try_filled(widths.padded_head().max(2 * widths.padded_value()), E::ZERO)?,
        })
    }

    /// Makes a row count as absent.
    pub fn drop_row(&mut self, widths: &Widths, row: usize) {
        self.live[row] = false;
        self.x[row * widths.input_row()..][..widths.input_row()].fill(E::ZERO);
        self.payload[row * widths.payload_row()..][..widths.payload_row()].fill(E::ZERO);
        self.log[row] = E::ZERO;
    }
}

impl<E: CpuElement> Scratch<E> {
    fn new(widths: Widths) -> Result<Self> {
        let payload = widths.payload_row();
        let features = widths.panels() * PANEL;
        Ok(Scratch {
            widths,
            writer: Side::new(&widths)?,
            reader: Side::new(&widths)?,
            written: try_filled(widths.panels() * CHUNK * PANEL, E::ZERO)?,
            read: try_filled(CHUNK * PANEL, E::ZERO)?,
            turned: try_filled(CHUNK.max(payload) * PANEL, E::ZERO)?,
            scores: try_filled(CHUNK * CHUNK, E::ZERO)?,
            score_gradient: try_filled(CHUNK * CHUNK, E::ZERO)?,
            payload_turned: try_filled(CHUNK * payload, E::ZERO)?,
            numerator: try_filled(CHUNK * payload, E::ZERO)?,
            denominator: try_filled(CHUNK, E::ZERO)?,
            exponent: try_filled(CHUNK, E::ZERO)?,
            lanes: try_filled(CHUNK * PAD, E::ZERO)?,
            norms: try_filled(CHUNK * PAD, E::ZERO)?,
            tops: try_filled(CHUNK * PAD, E::ZERO)?,
            gradient: try_filled(2 * CHUNK * PANEL, E::ZERO)?,
            input_gradient: try_filled(CHUNK * widths.padded_head(), E::ZERO)?,
            stash: try_filled(widths.projection_panels() * CHUNK * PANEL, E::ZERO)?,
            stashed_norms: try_filled(CHUNK * PAD, E::ZERO)?,
            factor: try_filled(CHUNK, E::ZERO)?,
            state: State::new(&widths)?,
            before: State::new(&widths)?,
            other: State::new(&widths)?,
            far: false,
            spare: try_filled(CHUNK * PANEL, E::ZERO)?,
            reference: try_filled(features, E::ZERO)?,
            power: try_filled(features, E::ZERO)?,
            direction_gradient: Vec::new(),
        })
    }

    /// Bytes of the buffers that grow with the widths.
    fn bytes(&self) -> usize {
        let sides = [&self.writer, &self.reader].into_iter().flat_map(|side| [&side.x, &side.y, &side.payload]);
        let states = [&self.state, &self.before].into_iter().map(|state| &state.values);
        let own = [&self.written, &self.turned, &self.payload_turned, &self.numerator, &self.direction_gradient];
        sides.chain(states).chain(own).map(|buffer| buffer.len() * size_of::<E>()).sum()
    }
}

/// Scratch that a thread keeps, with its size in bytes, the oldest first.
type Kept = Vec<(usize, Box<dyn Any>)>;

thread_local! {
    static KEPT: RefCell<Kept> = const { RefCell::new(Vec::new()) };
}

/// Scratch kept a thread: enough for a model whose layers alternate two shapes in two types.
const KEPT_MOST: usize = 4;
/// Bytes kept a thread; the scratch of the latest task stays even where it alone is larger.
const KEPT_BYTES: usize = 16 << 20;

/// Runs `body` with scratch for `widths`, kept from an earlier task of this thread where there is one.
///
/// # Errors
/// [`Error::OutOfMemory`], or what `body` returns.
pub fn with_scratch<E: CpuElement, R>(widths: Widths, body: impl FnOnce(&mut Scratch<E>) -> Result<R>) -> Result<R> {
    let kept = KEPT.with_borrow_mut(|all| {
        let fits = |any: &dyn Any| any.downcast_ref::<Scratch<E>>().is_some_and(|s| s.widths == widths);
        let at = all.iter().position(|(_, any)| fits(any.as_ref()))?;
        all.remove(at).1.downcast::<Scratch<E>>().ok()
    });
    let mut scratch = match kept {
        Some(found) => found,
        None => Box::new(Scratch::new(widths)?),
    };
    let result = body(&mut scratch);
    KEPT.with_borrow_mut(|all| {
        all.push((scratch.bytes(), scratch));
        while all.len() > KEPT_MOST || all.len() > 1 && all.iter().map(|(bytes, _)| bytes).sum::<usize>() > KEPT_BYTES {
            all.remove(0);
        }
    });
    result
}
