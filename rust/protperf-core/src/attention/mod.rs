//! Arguments of attention, checked once, and the plain f64 forms that judge the fast ones.

pub mod causal;
pub mod exact;
pub mod features;
pub mod noncausal;
pub mod recurrent;
pub(crate) mod rows;

use crate::error::{Error, Result};
use crate::feature_map::{Family, FeatureMap};
use crate::tensor::{TensorRef, checked_product};

/// The projection matrix, shared by all heads `[M,D]` or one a head `[H,M,D]`.
#[derive(Clone, Copy, Debug)]
pub struct Omega<'a> {
    /// Rows one after another.
    pub data: &'a [f64],
    /// `None`: one matrix for all heads.
    pub num_heads: Option<usize>,
    /// M.
    pub num_features: usize,
    /// D.
    pub head_dim: usize,
}

impl<'a> Omega<'a> {
    /// The matrix of one head, `[M,D]`.
    pub fn head(&self, head: usize) -> &'a [f64] {
        let size = self.num_features * self.head_dim;
        let start = if self.num_heads.is_some() { head * size } else { 0 };
        &self.data[start..start + size]
    }
}

/// Everything that one call of linear attention takes.
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
    /// `None` is the identity: activation maps only.
    pub omega: Option<Omega<'a>>,
    /// The feature map.
    pub feature_map: FeatureMap,
    /// Added to every feature of an activation map; 0 for the others.
    pub kernel_epsilon: f64,
    /// Position i sees positions up to i; needs L == S.
    pub causal: bool,
    /// Segment borders `[num_segments+1]` of a packed batch of one, from 0 to L, not decreasing.
    pub cu_seqlens: Option<&'a [i64]>,
    /// `[B,S]`, true where a key is padding and ignored.
    pub key_padding_mask: Option<&'a [bool]>,
}

/// Sizes of a checked call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FavorShape {
    /// B.
    pub batch: usize,
    /// H, query heads.
    pub heads: usize,
    /// Hk, key and value heads.
    pub kv_heads: usize,
    /// L.
    pub q_len: usize,
    /// S.
    pub kv_len: usize,
    /// D.
    pub head_dim: usize,
    /// E.
    pub value_dim: usize,
    /// M: rows of omega, D where there is none.
    pub num_features: usize,
    /// F: width of phi(x).
    pub feature_dim: usize,
}

impl FavorShape {
    /// Query heads that share one key head.
    pub fn group(&self) -> usize {
        self.heads / self.kv_heads.max(1)
    }

    /// Shape of the output `[B,H,L,E]`.
    pub fn out(&self) -> [usize; 4] {
        [self.batch, self.heads, self.q_len, self.value_dim]
    }

    /// Shape of the running state `[B,H,F,2+E]`: reference, `k_state`, `kv_state`.
    pub fn state(&self) -> [usize; 4] {
        [self.batch, self.heads, self.feature_dim, self.value_dim + 2]
    }
}

impl<T: Copy> FavorArgs<'_, T> {
    /// Checks every fact the kernels rely on and returns the sizes.
    ///
    /// # Errors
    /// [`Error::ShapeMismatch`] or [`Error::InvalidOption`] naming the argument, what it has and what is needed.
    pub fn validate(&self) -> Result<FavorShape> {
        let shape = check_qkv(&self.q, &self.k, &self.v, self.causal)?;
        let [_, heads, _, head_dim] = self.q.shape();
        let num_features = match &self.omega {
            Some(omega) => check_omega(omega, heads, head_dim)?,
            None if self.feature_map.family() == Family::Activation => head_dim,
            None => {
                let name = self.feature_map.name();
                return Err(Error::option(
                    "omega",
                    format!("is needed by feature_map {name:?}; draw it with draw_projection"),
                ));
            }
        };
        if !self.kernel_epsilon.is_finite() || self.kernel_epsilon < 0.0 {
            return Err(Error::option(
                "kernel_epsilon",
                format!("must be finite and at least 0, not {}", self.kernel_epsilon),
            ));
        }
        if self.kernel_epsilon != 0.0 && self.feature_map.family() != Family::Activation {
            let name = self.feature_map.name();
            return Err(Error::option(
                "kernel_epsilon",
                format!("belongs to relu and elu1; feature_map {name:?} takes 0"),
            ));
        }
        let shape = FavorShape { num_features, feature_dim: self.feature_map.feature_dim(num_features), ..shape };
        check_visibility(&shape, self.cu_seqlens, self.key_padding_mask)?;
        checked_product("the state", &shape.state())?;
        Ok(shape)
    }
}

/// Checks the shapes of q, k and v against each other; `num_features` and `feature_dim` of the result are 0.
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
        num_features: 0,
        feature_dim: 0,
    };
    checked_product("the output", &shape.out())?;
    Ok(shape)
}

fn check_omega(omega: &Omega<'_>, heads: usize, head_dim: usize) -> Result<usize> {
    if omega.head_dim != head_dim {
        return Err(Error::shape(
            "omega",
            format!("has {} columns but q has head_dim {head_dim}; draw it with head_dim={head_dim}", omega.head_dim),
        ));
    }
    if omega.num_features == 0 {
        return Err(Error::shape("omega", "has no rows; num_features must be at least 1"));
    }
    if let Some(n) = omega.num_heads.filter(|&n| n != heads) {
        return Err(Error::shape("omega", format!("has {n} heads but q has {heads}")));
    }
    let numel = checked_product("omega", &[omega.num_heads.unwrap_or(1), omega.num_features, omega.head_dim])?;
    if numel != omega.data.len() {
        return Err(Error::shape("omega", format!("has {} elements, its shape needs {numel}", omega.data.len())));
    }
    Ok(omega.num_features)
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
    let (Some(&first), Some(&last)) = (borders.first(), borders.last()) else {
        return Err(Error::shape("cu_seqlens", "is empty; it needs num_segments + 1 borders from 0 to L"));
    };
    if first != 0 || last != shape.q_len as i64 {
        return Err(Error::option(
            "cu_seqlens",
            format!("runs from {first} to {last} but must run from 0 to L = {}", shape.q_len),
        ));
    }
    if let Some(at) = borders.windows(2).position(|w| w[0] > w[1]) {
        return Err(Error::option("cu_seqlens", format!("decreases at index {}", at + 1)));
    }
    Ok(())
}
