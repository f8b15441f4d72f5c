//! Activation maps: `f(w . x) + kernel_epsilon`, each with its f and its slope.
//!
//! A map is a variant of [`Activation`] and an arm in each of the two functions below.

/// The functions f that activation maps apply to projections.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Activation {
    /// max(0, u).
    Relu,
    /// elu(u) + 1: u + 1 above 0, exp(u) below.
    Elu1,
}

impl Activation {
    /// f(u); NaN for NaN.
    pub fn value(self, u: f64) -> f64 {
        match self {
            // NaN stays NaN: `max` would drop it.
            Activation::Relu => {
                if u < 0.0 {
                    0.0
                } else {
                    u
                }
            }
            Activation::Elu1 => {
                if u > 0.0 {
                    u + 1.0
                } else {
                    libm::exp(u)
                }
            }
        }
    }

    /// f'(u), the left derivative where the two differ.
    pub fn slope(self, u: f64) -> f64 {
        match self {
            Activation::Relu => f64::from(u > 0.0),
            Activation::Elu1 => {
                if u > 0.0 {
                    1.0
                } else {
                    libm::exp(u)
                }
            }
        }
    }
}
