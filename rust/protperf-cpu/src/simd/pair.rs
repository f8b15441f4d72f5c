//! Two registers as one: AVX-512's lanes and tiles on a processor that has AVX2 alone, for tests. The bits are those of
//! AVX-512, for every lane is computed by itself and every method rounds as its twin there does.

use super::Simd;

/// Twice the lanes of another set of lanes.
#[derive(Clone, Copy)]
pub struct Pair<S>(std::marker::PhantomData<S>);

macro_rules! lane_by_lane {
    ($($method:ident($($arg:ident),*);)*) => {$(
        #[inline(always)]
        unsafe fn $method($($arg: Self::Register),*) -> Self::Register {
            // SAFETY: the contract of `Simd` is that of both halves.
            unsafe { [S::$method($($arg[0]),*), S::$method($($arg[1]),*)] }
        }
    )*};
}

// SAFETY: every method is that of S, twice, on registers or on 2 LANES elements that follow one another.
unsafe impl<S: Simd> Simd for Pair<S> {
    type T = S::T;
    type Register = [S::Register; 2];
    const LANES: usize = 2 * S::LANES;
    const TILE_ROWS: usize = 6;
    const TILE_REGISTERS: usize = 4;

    lane_by_lane! {
        add(a, b);
        sub(a, b);
        mul(a, b);
        div(a, b);
        max(a, b);
        min(a, b);
        fma(a, b, c);
        round(a);
        scale2(p, k);
        select_positive(x, a, b);
    }

    #[inline(always)]
    unsafe fn splat(x: S::T) -> Self::Register {
        // SAFETY: the contract of `Simd`.
        unsafe { [S::splat(x); 2] }
    }

    #[inline(always)]
    unsafe fn load(p: *const S::T) -> Self::Register {
        // SAFETY: the pointer is valid for twice the lanes of S.
        unsafe { [S::load(p), S::load(p.add(S::LANES))] }
    }

    #[inline(always)]
    unsafe fn store(p: *mut S::T, v: Self::Register) {
        // SAFETY: as in `load`.
        unsafe {
            S::store(p, v[0]);
            S::store(p.add(S::LANES), v[1]);
        }
    }

    #[inline(always)]
    unsafe fn zip(a: Self::Register, b: Self::Register) -> (Self::Register, Self::Register) {
        // SAFETY: the contract of `Simd`.
        unsafe {
            let ((first, second), (third, fourth)) = (S::zip(a[0], b[0]), S::zip(a[1], b[1]));
            ([first, second], [third, fourth])
        }
    }
}
