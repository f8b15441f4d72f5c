//! What the features of one head are computed from: the log-linear record of the exponential maps.
//!
//! With scaled inputs x = q D^-1/4 and y = k D^-1/4 every exponential map is log-linear,
//!
//! ```text
//! log phi_m(q) = w^q_m . x + c^q_m
//! log phi_m(k) = w^k_m . y + c^k_m - h(y),    h(y) = sum_l g_l y_l^2 / 2
//! ```
//!
//! so a map is nothing but these parameters, and one operation serves them all. A constant of a query (the same for
//! all of its features) cancels in the quotient, so h is on the key side alone. Constants of c^q_m and c^k_m act
//! through their sum; both are there because a state holds features of keys, and should hold those of the map.
//!
//! A shift of the means needs no parameter of its own. As exp(x . y) is exp((x - mu_q) . (y - mu_k)) exp(mu_q . y)
//! times a constant of the query, a map shifted by mu_q and mu_k (scaled as x and y are) is the record
//!
//! ```text
//! w^k_m <- w^k_m + g * mu_k + mu_q,    c^q_m <- c^q_m - w^q_m . mu_q,    c^k_m <- c^k_m - w^k_m . mu_k
//! ```
//!
//! with the old w^k_m on the right and * by axis; the rest of h(y - mu_k) is one constant for all keys and features.
//!
//! Activation and trigonometric maps have directions too, and nothing else.

use crate::error::Result;
use crate::memory::try_filled;

/// The parameters of one head, or of all heads one after another: P projections of D axes.
///
/// `S` is how they are held: `Vec<f64>`, `&[f64]`, or `&mut [f64]` for gradients to fill. A gradient has the fields
/// of the parameters; where both sides share their directions it is the sum of both sides'.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Parameters<S> {
    /// w^q `[P,D]`.
    pub query_directions: S,
    /// w^k `[P,D]`; `None`: those of the queries.
    pub key_directions: Option<S>,
    /// g `[D]`; `None`: 1 on every axis.
    pub key_quadratic: Option<S>,
    /// c^q `[P]`; `None`: 0.
    pub query_constants: Option<S>,
    /// c^k `[P]`; `None`: 0.
    pub key_constants: Option<S>,
}

impl<S> Parameters<S> {
    /// Directions that both sides share, and nothing else: what most maps are.
    pub fn of_directions(directions: S) -> Self {
        Parameters {
            query_directions: directions,
            key_directions: None,
            key_quadratic: None,
            query_constants: None,
            key_constants: None,
        }
    }

    /// Whether both sides share their directions, with g = 1 and no constants.
    pub fn is_shared(&self) -> bool {
        self.named().iter().skip(1).all(|(_, field)| field.is_none())
    }

    /// Every field with its name, in one fixed order.
    pub fn named(&self) -> [(&'static str, Option<&S>); 5] {
        [
            ("query_directions", Some(&self.query_directions)),
            ("key_directions", self.key_directions.as_ref()),
            ("key_quadratic", self.key_quadratic.as_ref()),
            ("query_constants", self.query_constants.as_ref()),
            ("key_constants", self.key_constants.as_ref()),
        ]
    }

    /// Every field that is there, in the order of [`Parameters::named`].
    pub fn fields_mut(&mut self) -> impl Iterator<Item = &mut S> {
        [
            Some(&mut self.query_directions),
            self.key_directions.as_mut(),
            self.key_quadratic.as_mut(),
            self.query_constants.as_mut(),
            self.key_constants.as_mut(),
        ]
        .into_iter()
        .flatten()
    }

    /// Each field turned into another.
    ///
    /// # Errors
    /// The first that `f` returns.
    pub fn try_map<'s, R>(&'s self, mut f: impl FnMut(&'s S) -> Result<R>) -> Result<Parameters<R>> {
        let mut optional = |field: &'s Option<S>| field.as_ref().map(&mut f).transpose();
        let (key_directions, key_quadratic) = (optional(&self.key_directions)?, optional(&self.key_quadratic)?);
        let (query_constants, key_constants) = (optional(&self.query_constants)?, optional(&self.key_constants)?);
        let query_directions = f(&self.query_directions)?;
        Ok(Parameters { query_directions, key_directions, key_quadratic, query_constants, key_constants })
    }
}

impl<S: std::ops::Deref<Target = [f64]>> Parameters<S> {
    /// Zeros of the same sizes, to sum gradients in.
    ///
    /// # Errors
    /// `OutOfMemory`.
    pub fn zeros_like(&self) -> Result<Parameters<Vec<f64>>> {
        self.try_map(|field| try_filled(field.len(), 0.0))
    }

    /// Whether no number of them is NaN or infinite.
    pub fn are_finite(&self) -> bool {
        self.named().iter().flat_map(|(_, field)| field.iter().flat_map(|field| field.iter())).all(|x| x.is_finite())
    }

    /// Directions of the keys.
    pub fn of_keys(&self) -> &[f64] {
        self.key_directions.as_ref().unwrap_or(&self.query_directions)
    }
}

impl Parameters<Vec<f64>> {
    /// Adds other parameters of the same sizes.
    pub fn add(&mut self, other: &Self) {
        let others = other.named().into_iter().filter_map(|(_, field)| field);
        for (to, from) in self.fields_mut().zip(others) {
            to.iter_mut().zip(from).for_each(|(to, from)| *to += from);
        }
    }
}
