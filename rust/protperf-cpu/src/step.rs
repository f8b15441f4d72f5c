//! One token per sequence and head, the state updated in place: `docs/algorithm.md`, section 9.
//!
//! ```text
//! b = c + y . w^T - h(y),  a = c + x . w^T               one key and one query
//! n' = max(n, round(b)),   t = max_m round(a_m + n'_m)
//! S_m = 2^(n_m - n'_m) S_m + 2^(b_m - n'_m) [v, 1]
//! out = (sum_m 2^(a_m + n'_m - t) kv_m) / (sum_m 2^(a_m + n'_m - t) k_m)
//! ```
//!
//! The stages of a chunk of one row, but the state is read and written once, where it lies. A key is never later than its
//! query, so no row has to be computed again.

use crate::decoding::{DecodingState, HeadState};
use crate::features::{Family, KeyPanel, QueryPanel};
use crate::layout::{Layout, PAD, PANEL};
use crate::load::InputScales;
use crate::ops::{CpuElement, Ops, Token, sum_of};
use crate::packed_omega::{Head, PackedOmega};
use crate::parallel::Workers;
use crate::prepared::PreparedMap;
use crate::products::Products;
use crate::shared_out::SharedOut;
use crate::workspace::{Scratch, with_scratch};
use protperf_core::{Execution, Result, Side, check_len};

/// One token of each of some sequences.
#[derive(Clone, Copy, Debug)]
pub struct StepArgs<'a, T> {
    /// The first of the state's sequences that has a token.
    pub first: usize,
    /// Sequences from there on that have one.
    pub num_sequences: usize,
    /// H.
    pub heads: usize,
    /// Hk, of which H is a multiple.
    pub kv_heads: usize,
    /// E.
    pub value_dim: usize,
    /// `[n,H,D]`.
    pub q: &'a [T],
    /// `[n,Hk,D]`.
    pub k: &'a [T],
    /// `[n,Hk,E]`.
    pub v: &'a [T],
}

/// Elements of all states up to which a step runs on the calling thread: half a millisecond of work.
const SMALL: usize = 1 << 22;

/// Decodes one token; see [`Cpu::step`](crate::Cpu::step).
///
/// # Errors
/// `ShapeMismatch`, `OutOfMemory`, `Interrupted`.
pub fn run<T: CpuElement>(
    map: &PreparedMap<T>,
    args: &StepArgs<'_, T>,
    state: &mut DecodingState<T>,
    out: &mut [T],
    run: &Execution<'_>,
) -> Result<()> {
    let StepArgs { first, num_sequences: n, heads, kv_heads, value_dim, .. } = *args;
    let (layout, width) = (map.layout(value_dim), state.state_len());
    map.check_heads(heads, kv_heads)?;
    check_len("q", args.q.len(), n * heads * layout.head_dim)?;
    check_len("k", args.k.len(), n * kv_heads * layout.head_dim)?;
    check_len("v", args.v.len(), n * kv_heads * value_dim)?;
    state.check(&layout, (first + n) * heads)?;
    check_len("out", out.len(), n * heads * value_dim)?;
    let (ops, family) = (Ops::of(map.isa()), &**map.family());
    let scales = [InputScales::new(&layout, Some(family.norm())), InputScales::new(&layout, None)];
    let state = &mut state.memory_mut()[first * heads * width..][..n * heads * width];
    let num_threads = if state.len() < SMALL { 1 } else { run.num_threads };
    let (state, out) = (SharedOut::new(state), SharedOut::new(out));
    Workers::new(&Execution { num_threads, ..*run }).run(n, |sequence| {
        with_scratch(layout, |scratch| {
            for at in sequence * heads..(sequence + 1) * heads {
                let head = at % heads;
                let key = sequence * kv_heads + head / (heads / kv_heads);
                // SAFETY: a task has the states and outputs of one sequence, and each head of it once.
                let (state, out) = unsafe { (state.range(at * width, width), out.range(at * value_dim, value_dim)) };
                let (omega, is_finite) = map.of_head(head);
                let step = Step { ops, omega, family, layout, scales: &scales };
                let d = layout.head_dim;
                let token = [&args.q[at * d..][..d], &args.k[key * d..][..d], &args.v[key * value_dim..][..value_dim]];
                if !*is_finite || !step.run(token, &mut HeadState::new(&layout, state), out, scratch) {
                    state.fill(T::from_f64(f64::NAN));
                    out.fill(T::from_f64(f64::NAN));
                }
            }
            Ok(())
        })
    })
}

/// One head of one sequence.
struct Step<'a, T: CpuElement> {
    ops: &'static Ops<T>,
    omega: &'a PackedOmega<T>,
    family: &'a dyn Family<T>,
    layout: Layout,
    /// Of keys and of queries.
    scales: &'a [InputScales<T>; 2],
}

/// Rows of the scratch that hold the key and the query.
const KEY: usize = 0;
const QUERY: usize = 1;

impl<T: CpuElement> Step<'_, T> {
    /// Adds the key and answers the query; false where the state has seen something that is not finite.
    fn run(&self, [q, k, v]: [&[T]; 3], state: &mut HeadState<'_, T>, out: &mut [T], scratch: &mut Scratch<T>) -> bool {
        let (layout, width) = (&self.layout, self.layout.padded_value());
        let is_finite = |x: &[T]| self.ops.largest(x).1;
        self.clear_padding(state);
        if ![&state.reference[..], &state.sums[..], k, v].into_iter().all(is_finite) {
            return false;
        }
        let is_query_finite = self.project(q, k, scratch);
        self.raise(state.reference, scratch);
        self.make_features(state, scratch);
        let value = &mut scratch.keys.values_and_one[..width];
        value[..v.len()].copy_from_slice(v);
        value[v.len()..].fill(T::ZERO);
        let numerator = &mut scratch.buffers.sums.numerator[..width];
        numerator.fill(T::ZERO);
        let power = &scratch.buffers.references.power;
        for panel in 0..layout.feature_panels() {
            let (features, lanes) = (layout.features_of(panel), panel * PANEL..(panel + 1) * PANEL);
            let token = Token {
                factor: &power[lanes.clone()],
                key: &scratch.features[lanes.clone()],
                query: &scratch.queries.y[lanes],
                value,
            };
            self.ops.token(&token, &mut state.values[features.start * width..features.end * width], numerator);
        }
        if !is_finite(numerator) {
            return self.answer_carefully(is_query_finite, state, out, scratch);
        }
        let denominator = sum_of(&scratch.buffers.sums.lanes[..PAD]);
        store(&numerator[..layout.value_dim], denominator, T::ONE, is_query_finite, out);
        true
    }

    /// Lanes that no feature has: no key was seen there.
    fn clear_padding(&self, state: &mut HeadState<'_, T>) {
        for panel in 0..self.layout.feature_panels() {
            let unused = panel * PANEL + self.layout.extent(panel, 1).features..(panel + 1) * PANEL;
            state.reference[unused.clone()].fill(T::EMPTY_REFERENCE);
            state.sums[unused].fill(T::ZERO);
        }
    }

    /// Projections of both rows; whether the query is finite.
    fn project(&self, q: &[T], k: &[T], scratch: &mut Scratch<T>) -> bool {
        let rows = &mut scratch.keys;
        let quadratic = self.omega.key_quadratic.as_deref();
        self.scales[KEY].load(self.ops, &self.layout, k, quadratic, rows, KEY);
        self.scales[QUERY].load(self.ops, &self.layout, q, None, rows, QUERY);
        let head = self.head();
        // Without a norm of its own a query is projected as a key is, unless the sides differ.
        if !self.omega.is_shared() {
            self.family.project(&head, rows, 2, Side::Query);
            self.family.project(&head, rows, 1, Side::Key);
        } else {
            self.family.project(&head, rows, 2, Side::Key);
        }
        rows.finite[QUERY]
    }

    /// Raises the references to the key; the powers of two by which the sums shrink.
    fn raise(&self, reference: &mut [T], scratch: &mut Scratch<T>) {
        let before = &mut scratch.buffers.references.reference;
        let power = &mut scratch.buffers.references.power;
        before.copy_from_slice(reference);
        self.family.raise_reference(&self.head(), &scratch.keys, 1, reference);
        let changes = before.iter().zip(reference.iter());
        // After some tokens hardly any key raises a reference. Without an early end, so that registers compare.
        if changes.clone().fold(true, |same, (&old, &new)| same & (old == new)) {
            return power.fill(T::ONE);
        }
        power.iter_mut().zip(changes).for_each(|(power, (&old, &new))| *power = T::exp2_int(old - new));
    }

    /// Features of the key into `scratch.features` and of the query into `scratch.queries.y`, panel after panel; the
    /// sums of the key's features; the lanes of the denominator.
    fn make_features(&self, state: &mut HeadState<'_, T>, scratch: &mut Scratch<T>) {
        let (head, rows, range) = (self.head(), &scratch.keys, QUERY..QUERY + 1);
        let sums = &mut scratch.buffers.sums;
        let reference = &*state.reference;
        self.family.row_tops(&head, rows, range.clone(), reference, &mut sums.lanes, &mut sums.tops);
        sums.lanes[..PAD].fill(T::ZERO);
        for panel in 0..self.layout.feature_panels() {
            let lanes = panel * PANEL..(panel + 1) * PANEL;
            let key = &mut scratch.features[lanes.clone()];
            self.family.key_features(&head, &KeyPanel { panel, keys: rows, count: 1, reference }, key);
            let from = QueryPanel { panel, queries: rows, range: &range, reference, exponent: &sums.tops };
            let query = &mut scratch.queries.y[lanes.clone()];
            self.family.query_features(&head, &from, query);
            let extent = self.layout.extent(panel, 1);
            let (totals, powers) = (&mut state.sums[lanes.clone()], &scratch.buffers.references.power[lanes]);
            let own = totals.iter_mut().zip(powers).zip(key.iter()).take(extent.features);
            own.for_each(|((total, &power), &key)| *total = *total * power + key);
            self.ops.dot_rows(query, extent, totals, &mut sums.lanes);
        }
    }

    fn head(&self) -> Head<'_, T> {
        Head { ops: self.ops, products: Products::new(self.ops), omega: self.omega, layout: self.layout }
    }

    /// Answers a query whose numerators are not finite: where the state is, they overflowed, and are summed again at a
    /// scale at which they do not.
    fn answer_carefully(
        &self,
        is_query_finite: bool,
        state: &HeadState<'_, T>,
        out: &mut [T],
        scratch: &mut Scratch<T>,
    ) -> bool {
        let (layout, width) = (&self.layout, self.layout.padded_value());
        if ![&state.reference[..], &state.sums[..], &state.values[..]].into_iter().all(|x| self.ops.largest(x).1) {
            return false;
        }
        let half = T::from_f64(0.5) * T::TOP;
        let scale = T::exp2_int(-half.round_even());
        let numerator = &mut scratch.buffers.sums.numerator[..layout.value_dim];
        numerator.fill(T::ZERO);
        for (row, feature) in state.values.chunks_exact(width).zip(0..) {
            let query = scratch.queries.y[layout.place(feature)];
            numerator.iter_mut().zip(row).for_each(|(sum, &x)| *sum += query * (x * scale));
        }
        let denominator = sum_of(&scratch.buffers.sums.lanes[..PAD]);
        store(numerator, denominator, T::exp2_int(half.round_even()), is_query_finite, out);
        true
    }
}

/// Quotients times `back`, limited to finite values; 0 where the denominator is.
fn store<T: CpuElement>(numerator: &[T], denominator: T, back: T, is_finite: bool, out: &mut [T]) {
    if !is_finite {
        return out.fill(T::from_f64(f64::NAN));
    }
    if denominator == T::ZERO {
        return out.fill(T::ZERO);
    }
    for (to, &numerator) in out.iter_mut().zip(numerator) {
        let x = numerator / denominator * back;
        let x = if x > T::MAX { T::MAX } else { x };
        *to = if x < -T::MAX { -T::MAX } else { x };
    }
}
