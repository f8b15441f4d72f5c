//! Lanes: the vector operations that the generic loops of `ops` are written in, one implementation per ISA.
//!
//! Every method is `#[inline(always)]` without a target feature of its own: it is compiled into the
//! `#[target_feature]` entry points that `ops::table` makes, and must not be called from anywhere else.

/// Methods of [`Simd`] that are one intrinsic each.
#[cfg(target_arch = "x86_64")]
macro_rules! intrinsics {
    ($($method:ident($($arg:ident: $arg_type:ty),*) $(-> $result:ty)? = $intrinsic:expr;)*) => {$(
        #[inline(always)]
        unsafe fn $method($($arg: $arg_type),*) $(-> $result)? {
            // SAFETY: the contract of `Simd`: whoever calls a method guarantees that the processor has the
            // instruction set, and that a pointer is valid for LANES elements; the intrinsic needs no more.
            unsafe { $intrinsic($($arg),*) }
        }
    )*};
}

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
pub mod amx;
#[cfg(target_arch = "x86_64")]
pub mod avx2;
#[cfg(target_arch = "x86_64")]
pub mod avx512;
#[cfg(target_arch = "x86_64")]
pub mod avx512bf16;
#[cfg(all(target_arch = "x86_64", feature = "emulate-avx512"))]
pub mod pair;
pub mod plain_tiles;
pub mod scalar;
pub mod tile;

use protperf_core::Element;

/// Constants and scalar operations of the two types.
pub trait Real:
    Element + std::ops::Div<Output = Self> + std::ops::Neg<Output = Self> + std::ops::AddAssign + std::ops::MulAssign
{
    /// Coefficients of 2^f on |f| <= 1/2, constant term first.
    const EXP2: &'static [Self];
    /// Exponents below this flush to zero: no denormal is ever formed by a rescale.
    const FLUSH: Self;
    /// The largest exponent that a rescale uses.
    const TOP: Self;
    /// Scaled inputs and activation features are limited to this, so that every product stays finite.
    const LIMIT: Self;
    /// ln 2, the leading bits: times any integer exponent exact.
    const LN2_HIGH: Self;
    /// ln 2, the rest.
    const LN2_LOW: Self;
    /// pi in parts, the first ones short: times integers up to 2^14 (f32) and 2^22 (f64) exact.
    const PI_PARTS: [Self; 3];
    /// Terms after the 1 in the series of the cosine on [-pi/2, pi/2]; what is left out is below half a unit.
    const COS_TERMS: u32;
    /// The largest finite value.
    const MAX: Self;
    /// Zero.
    const ZERO: Self;
    /// One.
    const ONE: Self;
    /// How many bits a reference may lie above what a row can see. Past this the row's own terms could be flushed to
    /// zero, so the row is computed again with references over its own past.
    const MAX_LOOKAHEAD_BITS: Self;
    /// Absolute value.
    fn abs(self) -> Self;
    /// Neither NaN nor infinite.
    fn is_finite(self) -> bool;
    /// Nearest integer, ties to even.
    fn round_even(self) -> Self;
    /// Square root, correctly rounded.
    fn sqrt(self) -> Self;
    /// Exponent e and mantissa in [1/2, 1) of a finite non-zero value, `mantissa * 2^e`.
    fn frexp(self) -> (Self, Self);
}

macro_rules! real {
    ($t:ty, $bits:ty, $mantissa:expr, $bias:expr, $flush:expr, $max_lookahead_bits:expr, $ln2:expr, $pi:expr, $cos_terms:expr,
     $coefficients:expr) => {
        impl Real for $t {
            const EXP2: &'static [Self] = &$coefficients;
            const FLUSH: Self = $flush;
            const TOP: Self = $bias as Self;
            const LIMIT: Self = 1e15;
            const LN2_HIGH: Self = $ln2.0;
            const LN2_LOW: Self = $ln2.1;
            const PI_PARTS: [Self; 3] = $pi;
            const COS_TERMS: u32 = $cos_terms;
            const MAX: Self = <$t>::MAX;
            const ZERO: Self = 0.0;
            const ONE: Self = 1.0;
            const MAX_LOOKAHEAD_BITS: Self = $max_lookahead_bits;
            #[inline(always)]
            fn abs(self) -> Self {
                <$t>::abs(self)
            }
            #[inline(always)]
            fn is_finite(self) -> bool {
                <$t>::is_finite(self)
            }
            #[inline(always)]
            fn round_even(self) -> Self {
                <$t>::round_ties_even(self)
            }
            #[inline(always)]
            fn sqrt(self) -> Self {
                <$t>::sqrt(self)
            }
            fn frexp(self) -> (Self, Self) {
                // Denormals are lifted into the normal range first.
                let lift: $t = if <$t>::abs(self) < <$t>::MIN_POSITIVE { $mantissa as $t + 1.0 } else { 0.0 };
                let bits = (self * <$t as Element>::exp2_int(lift)).to_bits();
                let exponent = ((bits >> $mantissa) as i64 & (2 * $bias + 1)) - ($bias - 1);
                let field = (2 * $bias as $bits + 1) << $mantissa;
                let mantissa = <$t>::from_bits(bits & !field | ($bias as $bits - 1) << $mantissa);
                (exponent as $t - lift, mantissa)
            }
        }
    };
}

// Interpolated at Chebyshev nodes with the constant term fixed at 1; relative error 5.1e-9 and 8.4e-18.
real!(
    f32,
    u32,
    23,
    127,
    -125.0,
    40.0,
    (0.693_359_375, -2.121_944_4e-4),
    [3.140625, 0.0009670257568359375, 6.278329465203569e-07],
    7,
    [
        1.0,
        6.931_471_880_262_288e-1,
        2.402_265_076_056_812_6e-1,
        5.550_357_114_219_078e-2,
        9.618_082_557_277_852e-3,
        1.339_086_336_467_123_4e-3,
        1.545_316_294_512_069e-4,
    ]
);
real!(
    f64,
    u64,
    52,
    1023,
    -1020.0,
    400.0,
    (6.931_471_803_691_238_2e-1, 1.908_214_929_270_587_7e-10),
    [3.141592651605606, 1.9841871583270443e-09, 1.034036596358821e-18],
    11,
    [
        1.0,
        std::f64::consts::LN_2,
        2.402_265_069_591_009_72e-1,
        5.550_410_866_482_159_70e-2,
        9.618_129_107_606_887_59e-3,
        1.333_355_814_641_693_56e-3,
        1.540_353_044_173_604_99e-4,
        1.525_273_382_983_611_92e-5,
        1.321_544_258_792_168_93e-6,
        1.017_806_244_584_577_37e-7,
        7.072_585_949_269_223_39e-9,
        4.454_960_598_186_518_56e-10,
    ]
);

/// One register type of one instruction set.
///
/// # Safety
/// An implementation may assume in every method that the processor has its instruction set and that each pointer is
/// valid for `LANES` elements, aligned or not; whoever calls a method guarantees both.
#[allow(clippy::missing_safety_doc)]
pub unsafe trait Simd: Copy + 'static {
    /// The element.
    type T: Real;
    /// The register.
    type Register: Copy;
    /// Elements of a register.
    const LANES: usize;
    /// Rows of one tile of a product.
    const TILE_ROWS: usize;
    /// Columns of one tile of a product, in registers. Rows times columns accumulators, one row of the right operand
    /// and one broadcast element fit the registers that the instruction set has.
    const TILE_REGISTERS: usize;

    unsafe fn splat(x: Self::T) -> Self::Register;
    unsafe fn load(p: *const Self::T) -> Self::Register;
    unsafe fn store(p: *mut Self::T, v: Self::Register);
    unsafe fn add(a: Self::Register, b: Self::Register) -> Self::Register;
    unsafe fn sub(a: Self::Register, b: Self::Register) -> Self::Register;
    unsafe fn mul(a: Self::Register, b: Self::Register) -> Self::Register;
    unsafe fn div(a: Self::Register, b: Self::Register) -> Self::Register;
    /// The larger of each pair of lanes; b where one of them is NaN.
    unsafe fn max(a: Self::Register, b: Self::Register) -> Self::Register;
    /// The smaller of each pair of lanes; b where one of them is NaN.
    unsafe fn min(a: Self::Register, b: Self::Register) -> Self::Register;
    /// a * b + c; one rounding where the instruction set has it.
    unsafe fn fma(a: Self::Register, b: Self::Register, c: Self::Register) -> Self::Register;
    /// Nearest integer.
    unsafe fn round(a: Self::Register) -> Self::Register;
    /// p * 2^k for integers k, zero below [`Real::FLUSH`].
    unsafe fn scale2(p: Self::Register, k: Self::Register) -> Self::Register;
    /// The lanes of a where x > 0, else those of b.
    unsafe fn select_positive(x: Self::Register, a: Self::Register, b: Self::Register) -> Self::Register;
    /// Interleaves two registers: the low halves, then the high halves.
    unsafe fn zip(a: Self::Register, b: Self::Register) -> (Self::Register, Self::Register);
}
