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
    /// u.
    Identity,
    /// |u|.
    Abs,
    /// max(0, u)^2.
    Relu2,
    /// u^2.
    Square,
    /// 1 / (1 + exp(-u)).
    Sigmoid,
    /// tanh(u).
    Tanh,
    /// u sigmoid(2 sqrt(2/pi) (u + 0.044715 u^3)), the form with tanh.
    Gelu,
    /// cos(u).
    Cos,
}

/// sqrt(8 / pi), and the share of u^3, of [`Activation::Gelu`].
pub const GELU: [f64; 2] = [1.595_769_121_605_730_9, 0.044_715];

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
            Activation::Identity => u,
            Activation::Abs => u.abs(),
            Activation::Relu2 => {
                let positive = Activation::Relu.value(u);
                positive * positive
            }
            Activation::Square => u * u,
            Activation::Sigmoid => sigmoid(u),
            Activation::Tanh => libm::tanh(u),
            Activation::Gelu => u * sigmoid(GELU[0] * (u + GELU[1] * u * u * u)),
            Activation::Cos => libm::cos(u),
        }
    }

    /// f'(u), the left derivative where the two differ, but 0 for |u| at 0.
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
            Activation::Identity => 1.0,
            Activation::Abs => f64::from(u > 0.0) - f64::from(u < 0.0),
            Activation::Relu2 => 2.0 * Activation::Relu.value(u),
            Activation::Square => 2.0 * u,
            Activation::Sigmoid => sigmoid(u) * sigmoid(-u),
            Activation::Tanh => {
                let e = libm::exp(-2.0 * u.abs());
                4.0 * e / ((1.0 + e) * (1.0 + e))
            }
            Activation::Gelu => {
                let inner = GELU[0] * (u + GELU[1] * u * u * u);
                let rate = GELU[0] * (1.0 + 3.0 * GELU[1] * u * u);
                // Far out the product is 0 times a square that may not be finite.
                let turn = sigmoid(inner) * sigmoid(-inner);
                sigmoid(inner) + if turn > 0.0 { u * turn * rate } else { 0.0 }
            }
            Activation::Cos => -libm::sin(u),
        }
    }

    /// How f grows towards positive and towards negative u: the power of |u| that it follows, 0 where it is bounded.
    pub fn growth(self) -> [i32; 2] {
        match self {
            Activation::Relu | Activation::Elu1 | Activation::Gelu => [1, 0],
            Activation::Identity | Activation::Abs => [1, 1],
            Activation::Relu2 => [2, 0],
            Activation::Square => [2, 2],
            Activation::Sigmoid | Activation::Tanh | Activation::Cos => [0, 0],
        }
    }
}

fn sigmoid(u: f64) -> f64 {
    1.0 / (1.0 + libm::exp(-u))
}
