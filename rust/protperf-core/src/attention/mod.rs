//! Arguments of attention, checked once, and the plain f64 forms that judge the fast ones.

pub mod causal;
pub mod exact;
pub mod features;
mod map_args;
pub mod noncausal;
mod omega;
pub mod recurrent;
pub(crate) mod rows;

use crate::error::{Error, Result};
pub use crate::shape::FavorShape;
use crate::tensor::{TensorRef, checked_product};
pub use map_args::{LogLinear, MapArgs, MapGradients, MapSizes};
pub use omega::Omega;

/// Everything that one call of linear attention takes. `T` is the type that the tensors are stored in.
///
/// # Shapes
/// q `[B,H,L,D]`, k `[B,Hk,S,D]`, v `[B,Hk,S,E]`, H a multiple of Hk.
#[derive(Clone, Copy, Debug)]
pub struct FavorArgs<'a, T> {
    /// Queries.
    pub q: TensorRef<'a, T>,
    /// Keys.
    pub k: TensorRef<'a, T>,
    /// Values.
    pub v: TensorRef<'a, T>,
    /// The feature map with its parameters.
    pub map: MapArgs<'a>,
    /// Position i sees positions up to i; needs L == S.
    pub causal: bool,
    /// Segment borders `[num_segments+1]` of a packed batch of one, from 0 to L, not decreasing.
    pub cu_seqlens: Option<&'a [i64]>,
    /// `[B,S]`, true where a key is padding and ignored.
    pub key_padding_mask: Option<&'a [bool]>,
}

impl<T: Copy> FavorArgs<'_, T> {
    /// Checks every fact the kernels rely on and returns the sizes.
    ///
    /// # Errors
    /// [`Error::ShapeMismatch`] or [`Error::InvalidOption`] naming the argument, what it has and what is needed.
    pub fn validate(&self) -> Result<FavorShape> {
        let shape = check_qkv(&self.q, &self.k, &self.v, self.causal)?;
        let sizes = self.map.validate(shape.heads, shape.head_dim)?;
        let shape = FavorShape {
            num_segments: self.cu_seqlens.map_or(1, |borders| borders.len().saturating_sub(1)),
            num_features: sizes.num_features,
            num_projections: sizes.num_projections,
            feature_dim: sizes.feature_dim,
            ..shape
        };
        check_visibility(&shape, self.cu_seqlens, self.key_padding_mask)?;
        checked_product("the state", &shape.state())?;
        Ok(shape)
    }
}

/// Checks the shapes of q, k and v against each other; what depends on the map is 0 in the result.
///
/// # Errors
/// [`Error::ShapeMismatch`] naming the two arguments that disagree.
pub fn check_qkv<T: Copy>(
    q: &TensorRef<'_, T>,
    k: &TensorRef<'_, T>,
    v: &TensorRef<'_, T>,
    causal: bool,
) -> Result<FavorShape> {
    let ([batch, heads, q_len, head_dim], ks, vs) = (q.shape(), k.shape(), v.shape());
    let [_, kv_heads, kv_len, _] = ks;
    if ks[0] != batch {
        return Err(Error::shape("k", format!("has batch {} but q has batch {batch}", ks[0])));
    }
    if ks[3] != head_dim {
        return Err(Error::shape("k", format!("has head_dim {} but q has head_dim {head_dim}", ks[3])));
    }
    if vs[..3] != ks[..3] {
        return Err(Error::shape("v", format!("has [B,H,S] {:?} but k has {:?}", &vs[..3], &ks[..3])));
    }
    if kv_heads == 0 && heads != 0 || kv_heads != 0 && !heads.is_multiple_of(kv_heads) {
        return Err(Error::shape("q", format!("has {heads} heads, not a multiple of the {kv_heads} heads of k")));
    }
    if head_dim == 0 {
        return Err(Error::shape("q", "has head_dim 0"));
    }
    if causal && q_len != kv_len {
        return Err(Error::shape("k", format!("has length {kv_len} but causal attention needs q's length {q_len}")));
    }
    let shape = FavorShape {
        batch,
        heads,
        kv_heads,
        q_len,
        kv_len,
        head_dim,
        value_dim: vs[3],
        num_segments: 1,
        num_features: 0,
        num_projections: 0,
        feature_dim: 0,
    };
    checked_product("the output", &shape.out())?;
    Ok(shape)
}

/// Checks segment borders and padding mask against the sizes.
///
/// # Errors
/// [`Error::ShapeMismatch`] or [`Error::InvalidOption`] naming the argument.
pub fn check_visibility(
    shape: &FavorShape,
    cu_seqlens: Option<&[i64]>,
    key_padding_mask: Option<&[bool]>,
) -> Result<()> {
    if let Some(mask) = key_padding_mask {
        if cu_seqlens.is_some() {
            return Err(Error::option("key_padding_mask", "cannot be given together with cu_seqlens"));
        }
        let needed = checked_product("key_padding_mask", &[shape.batch, shape.kv_len])?;
        if mask.len() != needed {
            return Err(Error::shape(
                "key_padding_mask",
                format!("has {} elements but [B,S] is [{},{}]", mask.len(), shape.batch, shape.kv_len),
            ));
        }
    }
    let Some(borders) = cu_seqlens else { return Ok(()) };
    if shape.batch != 1 || shape.q_len != shape.kv_len {
        return Err(Error::shape(
            "cu_seqlens",
            format!("needs batch 1 and L = S, but batch is {}, L {} and S {}", shape.batch, shape.q_len, shape.kv_len),
        ));
    }
    check_borders(borders, shape.q_len)
}

/// Checks that the borders of packed segments run from 0 to the number of rows and never decrease.
///
/// # Errors
/// [`Error::ShapeMismatch`] or [`Error::InvalidOption`] naming `cu_seqlens`.
pub fn check_borders(borders: &[i64], len: usize) -> Result<()> {
    let (Some(&first), Some(&last)) = (borders.first(), borders.last()) else {
        return Err(Error::shape("cu_seqlens", "is empty; it needs num_segments + 1 borders from 0 to L"));
    };
    if first != 0 || last != len as i64 {
        return Err(Error::option(
            "cu_seqlens",
            format!("runs from {first} to {last} but must run from 0 to L = {len}"),
        ));
    }
    if let Some(at) = borders.windows(2).position(|w| w[0] > w[1]) {
        return Err(Error::option("cu_seqlens", format!("decreases at index {}", at + 1)));
    }
    Ok(())
}
