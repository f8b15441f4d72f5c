//! The types that tensors are stored in, apart from the two types that are computed in.

use half::{bf16, f16};
use std::fmt::Debug;
use std::ops::{Add, Mul, Sub};

/// A type that tensors are stored in. Kernels widen an element when they load its row and round a result when they
/// store it; nothing is computed in the stored type itself.
pub trait Stored: Copy + Default + PartialEq + Send + Sync + Debug + 'static {
    /// The type that is computed in: f64 for f64, else f32.
    type Compute: Element;
    /// The name that NumPy and torch use.
    const NAME: &'static str;
    /// The same value in the type that is computed in; exact.
    fn widen(self) -> Self::Compute;
    /// The nearest value of the stored type, ties to even.
    fn round(x: Self::Compute) -> Self;
}

/// A type that the kernels compute in. It is stored as it is.
pub trait Element:
    Stored<Compute = Self> + PartialOrd + Add<Output = Self> + Sub<Output = Self> + Mul<Output = Self>
{
    /// The reference of a feature that has seen no key: below that of every finite log-feature.
    const EMPTY_REFERENCE: Self;
    /// Nearest value of this type.
    fn from_f64(x: f64) -> Self;
    /// The same value, widened.
    fn to_f64(self) -> f64;
    /// 2^k for an integer k; 0 so far below the normal range that a product with it could be denormal.
    fn exp2_int(k: Self) -> Self;
}

macro_rules! element {
    ($t:ty, $bits:ty, $name:literal, mantissa $mantissa:literal, bias $bias:literal, flush $flush:literal) => {
        impl Stored for $t {
            type Compute = $t;
            const NAME: &'static str = $name;
            #[inline(always)]
            fn widen(self) -> $t {
                self
            }
            #[inline(always)]
            fn round(x: $t) -> $t {
                x
            }
        }

        impl Element for $t {
            const EMPTY_REFERENCE: $t = -1e37;
            #[inline(always)]
            fn from_f64(x: f64) -> $t {
                x as $t
            }
            #[inline(always)]
            fn to_f64(self) -> f64 {
                f64::from(self)
            }
            #[inline(always)]
            fn exp2_int(k: $t) -> $t {
                if k.is_nan() || k < $flush {
                    return 0.0;
                }
                let k = if k > $bias as $t { $bias as $t } else { k };
                <$t>::from_bits(((k as i64 + $bias) as $bits) << $mantissa)
            }
        }
    };
}

element!(f32, u32, "float32", mantissa 23, bias 127, flush -125.0);
element!(f64, u64, "float64", mantissa 52, bias 1023, flush -1020.0);

macro_rules! stored_in_16_bits {
    ($t:ty, $name:literal) => {
        impl Stored for $t {
            type Compute = f32;
            const NAME: &'static str = $name;
            #[inline(always)]
            fn widen(self) -> f32 {
                self.to_f32()
            }
            #[inline(always)]
            fn round(x: f32) -> $t {
                <$t>::from_f32(x)
            }
        }
    };
}

stored_in_16_bits!(bf16, "bfloat16");
stored_in_16_bits!(f16, "float16");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sixteen_bits_widen_exactly_and_round_to_nearest_even() {
        for bits in 0..=u16::MAX {
            let (b, h) = (bf16::from_bits(bits), f16::from_bits(bits));
            assert_eq!(b.widen().is_nan(), b.is_nan());
            assert!(b.is_nan() || bf16::round(b.widen()) == b);
            assert!(h.is_nan() || f16::round(h.widen()) == h);
        }
        // Halfway between two values of bf16: the even one.
        assert_eq!(bf16::round(1.0 + 1.0 / 256.0).widen(), 1.0);
        assert_eq!(bf16::round(1.0 + 3.0 / 256.0).widen(), 1.0 + 4.0 / 256.0);
        assert_eq!(f16::round(65520.0).widen(), f32::INFINITY);
    }

    #[test]
    fn powers_of_two_are_exact_and_flush_far_below() {
        for k in -1020..=1023 {
            assert_eq!(f64::exp2_int(f64::from(k)), libm::ldexp(1.0, k));
        }
        for k in -125..=127 {
            assert_eq!(f64::from(f32::exp2_int(k as f32)), libm::ldexp(1.0, k));
        }
        assert_eq!((f32::exp2_int(-126.0), f64::exp2_int(-1021.0)), (0.0, 0.0));
        assert_eq!((f32::exp2_int(-2e37), f64::exp2_int(f64::NAN)), (0.0, 0.0));
        assert_eq!(f32::exp2_int(2e37), 2f32.powi(127));
    }
}
