//! The parameters of a map, packed for the products once and for all calls that follow: `docs/algorithm.md`, section 2.

use crate::dispatch::Isa;
use crate::features::{self, Family};
use crate::instructions::Instructions;
use crate::layout::Layout;
use crate::ops::{CpuElement, Ops};
use crate::packed_omega::PackedOmega;
use protperf_core::{Error, MapArgs, Result, try_reserved};
use std::sync::Arc;

/// A map with its parameters as the kernels of one instruction set read them; a clone shares them.
///
/// It holds copies: what it was made of may change or go, and a map that has changed has to be prepared again.
#[derive(Clone)]
pub struct PreparedMap<T: CpuElement>(Arc<Prepared<T>>);

struct Prepared<T: CpuElement> {
    instructions: Instructions,
    family: Arc<dyn Family<T>>,
    key: Key,
    /// One for all heads, or one per head, and whether all numbers that it was made from are finite.
    sets: Vec<(PackedOmega<T>, bool)>,
}

/// What two maps have in common whose parameters alone differ.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Key {
    family: protperf_core::Family,
    kernel_epsilon: f64,
    num_sets: usize,
    head_dim: usize,
    num_projections: usize,
    feature_dim: usize,
}

impl Key {
    fn of(map: &MapArgs<'_>, heads: usize, head_dim: usize) -> Result<Self> {
        let sizes = map.validate(heads, head_dim)?;
        Ok(Key {
            family: map.family(),
            kernel_epsilon: map.kernel_epsilon(),
            num_sets: map.num_sets(),
            head_dim,
            num_projections: sizes.num_projections,
            feature_dim: sizes.feature_dim,
        })
    }
}

impl<T: CpuElement> std::fmt::Debug for PreparedMap<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("PreparedMap").field(&self.0.key).finish()
    }
}

impl<T: CpuElement> PreparedMap<T> {
    /// Packs the parameters of a map for `heads` heads; `check` is called before each set of them.
    ///
    /// # Errors
    /// As [`MapArgs::validate`]; `OutOfMemory`; what `check` returns.
    pub(crate) fn new(
        instructions: Instructions,
        map: &MapArgs<'_>,
        heads: usize,
        head_dim: usize,
        check: impl Fn() -> Result<()>,
    ) -> Result<Self> {
        let (key, ops, family) = (Key::of(map, heads, head_dim)?, Ops::of(instructions.isa), features::of::<T>(map));
        if instructions.bf16.is_some() && T::as_f32(&[]).is_none() {
            return Err(Error::option("precision", "is bf16, which rounds float32; tensors of float64 need f32"));
        }
        let mut sets = try_reserved(key.num_sets)?;
        for set in 0..key.num_sets {
            check()?;
            let parameters = map.parameters(set, head_dim)?;
            let packed =
                PackedOmega::pack(ops, &parameters, &layout_of(&key, 0), family.unit(), instructions.bf16.is_some())?;
            // A number may be finite as it was given and infinite in the type that is computed in.
            let is_finite = map.is_finite(set) && packed.is_finite(ops);
            sets.push((packed, is_finite));
        }
        Ok(PreparedMap(Arc::new(Prepared { instructions, family, key, sets })))
    }

    /// Refuses a map of another kind or size than this was made of. That its numbers are the same is the caller's to see to.
    ///
    /// # Errors
    /// [`Error::InvalidOption`], or as [`MapArgs::validate`].
    pub(crate) fn check(
        &self,
        instructions: Instructions,
        map: &MapArgs<'_>,
        heads: usize,
        head_dim: usize,
    ) -> Result<()> {
        let found = Key::of(map, heads, head_dim)?;
        if found == self.0.key && instructions == self.0.instructions {
            return Ok(());
        }
        let detail = format!(
            "was made for {:?} of {:?} but the call has {found:?} of {instructions:?}",
            self.0.key, self.0.instructions
        );
        Err(Error::InvalidOption { argument: "prepared", detail })
    }

    /// Refuses other heads than the map was made for.
    ///
    /// # Errors
    /// [`Error::ShapeMismatch`].
    pub(crate) fn check_heads(&self, heads: usize, kv_heads: usize) -> Result<()> {
        if heads > 0 && (kv_heads == 0 || !heads.is_multiple_of(kv_heads)) {
            let detail = format!("has {heads} heads, not a multiple of the {kv_heads} heads of k");
            return Err(Error::ShapeMismatch { argument: "q", detail });
        }
        let sets = self.0.key.num_sets;
        if sets != 1 && sets != heads {
            let detail = format!("has {heads} heads but the map was prepared for {sets}");
            return Err(Error::ShapeMismatch { argument: "q", detail });
        }
        Ok(())
    }

    /// The instruction set that reads it.
    pub fn isa(&self) -> Isa {
        self.0.instructions.isa
    }

    /// D.
    pub fn head_dim(&self) -> usize {
        self.0.key.head_dim
    }

    /// F.
    pub fn feature_dim(&self) -> usize {
        self.0.key.feature_dim
    }

    /// Bytes that it holds.
    pub fn num_bytes(&self) -> usize {
        self.0.sets.iter().map(|(packed, _)| packed.num_elements() * size_of::<T>()).sum()
    }

    /// The family of the map.
    pub(crate) fn family(&self) -> &Arc<dyn Family<T>> {
        &self.0.family
    }

    /// The widths of a call with values of some width.
    pub(crate) fn layout(&self, value_dim: usize) -> Layout {
        layout_of(&self.0.key, value_dim)
    }

    /// The packed parameters of a query head, and whether all numbers that they were made from are finite.
    pub(crate) fn of_head(&self, head: usize) -> &(PackedOmega<T>, bool) {
        &self.0.sets[if self.0.sets.len() == 1 { 0 } else { head }]
    }
}

fn layout_of(key: &Key, value_dim: usize) -> Layout {
    Layout {
        head_dim: key.head_dim,
        value_dim,
        projections: key.num_projections,
        features_per_projection: key.family.features_per_projection(),
    }
}
