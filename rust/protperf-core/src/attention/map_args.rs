//! The feature map of a call with what its parameters are made from, and where their gradients go.

use super::omega::Omega;
use crate::error::{Error, Result};
use crate::feature_map::{Family, FeatureMap, Parameters};
use crate::memory::{check_len, try_copied, try_filled};
use crate::tensor::checked_product;

/// The feature map of a call.
#[derive(Clone, Copy, Debug)]
pub enum MapArgs<'a> {
    /// A map of the registry.
    Named {
        /// The map.
        map: FeatureMap,
        /// `None` is the identity: activation maps only.
        omega: Option<Omega<'a>>,
        /// Added to every feature of an activation map; 0 for the others.
        kernel_epsilon: f64,
    },
    /// An exponential map that is given by its parameters.
    LogLinear(LogLinear<'a>),
}

/// The parameters of an exponential map, shared by all heads or one set per head.
#[derive(Clone, Copy, Debug)]
pub struct LogLinear<'a> {
    /// Directions `[P,D]` or `[H,P,D]`, quadratic `[D]` or `[H,D]`, constants `[P]` or `[H,P]`.
    pub parameters: Parameters<&'a [f64]>,
    /// `None`: one set for all heads.
    pub num_heads: Option<usize>,
    /// P, which is F.
    pub num_projections: usize,
    /// D.
    pub head_dim: usize,
}

/// Where the gradients of a call's parameters go. Each buffer has the size of what it is the gradient of.
#[derive(Debug)]
pub enum MapGradients<'a> {
    /// Of a named map's omega.
    Omega(&'a mut [f64]),
    /// Of the parameters that were given themselves: a buffer for each field that was given.
    LogLinear(Parameters<&'a mut [f64]>),
}

/// Sizes that a checked map has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MapSizes {
    /// M: rows of omega, D where there is none.
    pub num_features: usize,
    /// P: projections that a row of queries or keys is multiplied with.
    pub num_projections: usize,
    /// F: width of phi(x).
    pub feature_dim: usize,
}

impl MapArgs<'_> {
    /// The family that computes the map.
    pub fn family(&self) -> Family {
        match self {
            MapArgs::Named { map, .. } => map.family(),
            MapArgs::LogLinear(_) => Family::Exponential,
        }
    }

    /// What is added to every feature.
    pub fn kernel_epsilon(&self) -> f64 {
        match self {
            MapArgs::Named { kernel_epsilon, .. } => *kernel_epsilon,
            MapArgs::LogLinear(_) => 0.0,
        }
    }

    /// Sets of parameters: one for all heads, or one per head.
    pub fn num_sets(&self) -> usize {
        match self {
            MapArgs::Named { omega, .. } => omega.and_then(|omega| omega.num_heads).unwrap_or(1),
            MapArgs::LogLinear(record) => record.num_heads.unwrap_or(1),
        }
    }

    /// The set of parameters that a query head uses.
    pub fn set_of(&self, head: usize) -> usize {
        let is_shared = match self {
            MapArgs::Named { omega, .. } => omega.is_none_or(|omega| omega.num_heads.is_none()),
            MapArgs::LogLinear(record) => record.num_heads.is_none(),
        };
        if is_shared { 0 } else { head }
    }

    /// Whether the numbers that a set is made from are all finite. Where they are not, every output of the heads that
    /// use the set is NaN.
    pub fn is_finite(&self, set: usize) -> bool {
        match self {
            MapArgs::Named { omega: None, .. } => true,
            MapArgs::Named { omega: Some(omega), .. } => omega.head(set).iter().all(|x| x.is_finite()),
            MapArgs::LogLinear(record) => record.set(set).are_finite(),
        }
    }

    /// One set of parameters.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    pub fn parameters(&self, set: usize, head_dim: usize) -> Result<Parameters<Vec<f64>>> {
        match self {
            MapArgs::Named { omega: None, .. } => {
                let mut identity = try_filled(head_dim * head_dim, 0.0)?;
                identity.iter_mut().step_by(head_dim + 1).for_each(|x| *x = 1.0);
                Ok(Parameters::of_directions(identity))
            }
            MapArgs::Named { map, omega: Some(omega), .. } => map.parameters(omega.head(set), head_dim),
            MapArgs::LogLinear(record) => record.set(set).try_map(|field| try_copied(field)),
        }
    }

    /// Carries the gradients of all sets of parameters back to what the sets were made from.
    ///
    /// # Errors
    /// [`Error::InvalidOption`] where `to` is for another kind of map; [`Error::ShapeMismatch`] where a buffer has
    /// another size than what it is the gradient of.
    pub fn write_gradients(&self, sets: &[Parameters<Vec<f64>>], to: MapGradients<'_>) -> Result<()> {
        self.check_gradients(&to)?;
        match (self, to) {
            (MapArgs::Named { map, omega: Some(omega), .. }, MapGradients::Omega(domega)) => {
                domega.fill(0.0);
                let size = omega.num_features * omega.head_dim;
                for (set, (gradient, domega)) in sets.iter().zip(domega.chunks_exact_mut(size)).enumerate() {
                    map.add_omega_gradient(omega.head(set), omega.head_dim, gradient, domega);
                }
            }
            (_, MapGradients::LogLinear(mut buffers)) => {
                for (at, gradient) in sets.iter().enumerate() {
                    let fields = gradient.named().into_iter().filter_map(|(_, field)| field);
                    for (to, from) in buffers.fields_mut().zip(fields) {
                        to[at * from.len()..][..from.len()].copy_from_slice(from);
                    }
                }
            }
            (_, MapGradients::Omega(_)) => {}
        }
        Ok(())
    }

    /// Refuses buffers that are not the gradients of this map's parameters.
    ///
    /// # Errors
    /// As [`MapArgs::write_gradients`].
    pub fn check_gradients(&self, to: &MapGradients<'_>) -> Result<()> {
        match (self, to) {
            (MapArgs::Named { omega, .. }, MapGradients::Omega(domega)) => match omega {
                Some(omega) => check_len("domega", domega.len(), omega.data.len()),
                None => Err(Error::option("domega", "is asked for but there is no omega")),
            },
            (MapArgs::LogLinear(record), MapGradients::LogLinear(buffers)) => {
                for ((name, given), (_, buffer)) in record.parameters.named().into_iter().zip(buffers.named()) {
                    let needed = given.map_or(0, |field| field.len());
                    check_len(name, buffer.map_or(0, |buffer| buffer.len()), needed)?;
                }
                Ok(())
            }
            _ => Err(Error::option("gradients", "of the map's parameters are of another kind than the map")),
        }
    }

    /// Checks the map against the heads and the width of the queries.
    ///
    /// # Errors
    /// [`Error::ShapeMismatch`] or [`Error::InvalidOption`] naming the argument.
    pub fn validate(&self, heads: usize, head_dim: usize) -> Result<MapSizes> {
        match self {
            MapArgs::Named { map, omega, kernel_epsilon } => {
                check_epsilon(*map, *kernel_epsilon)?;
                let num_features = match omega {
                    Some(omega) => check_omega(omega, heads, head_dim)?,
                    None => without_omega(*map, head_dim)?,
                };
                let num_projections = map.num_projections(num_features);
                Ok(MapSizes { num_features, num_projections, feature_dim: map.feature_dim(num_features) })
            }
            MapArgs::LogLinear(record) => {
                let width = record.validate(heads, head_dim)?;
                Ok(MapSizes { num_features: width, num_projections: width, feature_dim: width })
            }
        }
    }
}

impl<'a> LogLinear<'a> {
    /// The parameters of one set.
    fn set(&self, set: usize) -> Parameters<&'a [f64]> {
        let sets = self.num_heads.unwrap_or(1);
        let part = |field: &'a [f64]| {
            let size = field.len() / sets;
            &field[set * size..][..size]
        };
        let Parameters { query_directions, key_directions, key_quadratic, query_constants, key_constants } =
            self.parameters;
        Parameters {
            query_directions: part(query_directions),
            key_directions: key_directions.map(part),
            key_quadratic: key_quadratic.map(part),
            query_constants: query_constants.map(part),
            key_constants: key_constants.map(part),
        }
    }

    fn validate(&self, heads: usize, head_dim: usize) -> Result<usize> {
        check_columns("query_directions", self.head_dim, head_dim)?;
        check_rows("query_directions", self.num_projections)?;
        check_heads("query_directions", self.num_heads, heads)?;
        let (sets, rows) = (self.num_heads.unwrap_or(1), self.num_projections);
        for (name, field) in self.parameters.named() {
            let Some(field) = field else { continue };
            let sizes: &[usize] = match name {
                "key_quadratic" => &[sets, head_dim],
                "query_constants" | "key_constants" => &[sets, rows],
                _ => &[sets, rows, head_dim],
            };
            check_len(name, field.len(), checked_product(name, sizes)?)?;
        }
        Ok(rows)
    }
}

fn without_omega(map: FeatureMap, head_dim: usize) -> Result<usize> {
    if let Family::Activation(_) = map.family() {
        return Ok(head_dim);
    }
    Err(Error::option("omega", format!("is needed by feature_map {:?}; draw it with draw_projection", map.name())))
}

fn check_epsilon(map: FeatureMap, epsilon: f64) -> Result<()> {
    if !epsilon.is_finite() || epsilon < 0.0 {
        return Err(Error::option("kernel_epsilon", format!("must be finite and at least 0, not {epsilon}")));
    }
    if epsilon == 0.0 || matches!(map.family(), Family::Activation(_)) {
        return Ok(());
    }
    let is_activation = |map: &FeatureMap| matches!(map.family(), Family::Activation(_));
    let takers: Vec<_> = FeatureMap::ALL.into_iter().filter(is_activation).map(FeatureMap::name).collect();
    let (takers, name) = (takers.join(" and "), map.name());
    Err(Error::option("kernel_epsilon", format!("belongs to {takers}; feature_map {name:?} takes 0")))
}

fn check_omega(omega: &Omega<'_>, heads: usize, head_dim: usize) -> Result<usize> {
    check_columns("omega", omega.head_dim, head_dim)?;
    check_rows("omega", omega.num_features)?;
    check_heads("omega", omega.num_heads, heads)?;
    let sizes = [omega.num_heads.unwrap_or(1), omega.num_features, omega.head_dim];
    check_len("omega", omega.data.len(), checked_product("omega", &sizes)?)?;
    Ok(omega.num_features)
}

fn check_columns(argument: &'static str, found: usize, head_dim: usize) -> Result<()> {
    if found == head_dim {
        return Ok(());
    }
    let detail = format!("has {found} columns but q has head_dim {head_dim}; draw it with head_dim={head_dim}");
    Err(Error::shape(argument, detail))
}

fn check_rows(argument: &'static str, rows: usize) -> Result<()> {
    if rows > 0 {
        return Ok(());
    }
    Err(Error::shape(argument, "has no rows; num_features must be at least 1"))
}

fn check_heads(argument: &'static str, found: Option<usize>, heads: usize) -> Result<()> {
    match found {
        Some(found) if found != heads => Err(Error::shape(argument, format!("has {found} heads but q has {heads}"))),
        _ => Ok(()),
    }
}
