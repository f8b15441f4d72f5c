//! AMX: eight tile registers of 16 rows of 64 bytes, and the product of two of them in bf16.
//! `docs/algorithm.md`, section 10.
//!
//! Stable Rust has no intrinsics for tiles, so each instruction is one `asm!`. The compiler never uses a tile register
//! by itself, because no code here enables the feature: what one `asm!` left in a register is there for the next one on
//! the same thread. The system saves the registers of a thread that asked for them, and only of those.

use super::plain_tiles::Emulated;
use super::tile::{COLS, Tile, Tiles};
use std::arch::asm;
use std::arch::x86_64::__cpuid_count;
use std::cell::Cell;
use std::marker::PhantomData;
use std::sync::OnceLock;

/// Bytes from one row of a tile in memory to the next.
const TILE_ROW: usize = 4 * COLS;

/// Whether this processor has the instructions, the system lets this process use them, and they compute what they
/// should; found out once in a process.
pub fn is_available() -> bool {
    static FOUND: OnceLock<bool> = OnceLock::new();
    *FOUND.get_or_init(|| has_instructions() && is_permitted() && agrees())
}

/// AMX-TILE and AMX-BF16 in the processor, and the state of tiles in what the system saves.
fn has_instructions() -> bool {
    if !is_x86_feature_detected!("xsave") || !super::avx512bf16::is_available() {
        return false;
    }
    let features = __cpuid_count(7, 0).edx;
    let saved: u32;
    // SAFETY: the processor has XGETBV, as it has XSAVE and the system uses it: AVX-512 was found.
    unsafe { asm!("xgetbv", in("ecx") 0, out("eax") saved, out("edx") _, options(nomem, nostack, preserves_flags)) };
    let (bf16, tiles, tile_state) = (1 << 22, 1 << 24, 0b11 << 17);
    features & bf16 != 0 && features & tiles != 0 && saved & tile_state == tile_state
}

/// Asks Linux for the registers, for all threads of this process and those that it will start.
fn is_permitted() -> bool {
    const ARCH_PRCTL: usize = 158;
    const ARCH_REQ_XCOMP_PERM: usize = 0x1023;
    const TILE_DATA: usize = 18;
    let answer: isize;
    // SAFETY: a system call that changes nothing but a permission; kernels that do not know it return an error.
    unsafe {
        asm!("syscall", inlateout("rax") ARCH_PRCTL => answer, in("rdi") ARCH_REQ_XCOMP_PERM, in("rsi") TILE_DATA,
            lateout("rcx") _, lateout("r11") _, options(nostack));
    }
    answer == 0
}

/// One product against plain Rust.
fn agrees() -> bool {
    let tile = |seed: u32| {
        Tile(std::array::from_fn(|row| {
            std::array::from_fn(|col| {
                // Two numbers of both signs with magnitudes of 2^-3 to 2^4.
                let bits = (seed + (row * COLS + col) as u32).wrapping_mul(0x9e37_79b1);
                bits & 0x83ff_83ff | 0x3e00_3e00
            })
        }))
    };
    let (left, right) = (tile(1), tile(1000));
    // SAFETY: instructions and permission were found.
    product(&mut unsafe { Amx::start() }, &left, &right) == product(&mut Emulated::zeroed(), &left, &right)
}

fn product(unit: &mut impl Tiles, left: &Tile, right: &Tile) -> [f32; COLS * COLS] {
    let mut sums = [0.0; COLS * COLS];
    unit.zero::<0>();
    unit.load::<4>(left);
    unit.load::<6>(right);
    unit.multiply::<0, 4, 6>();
    unit.multiply::<0, 4, 6>();
    unit.store::<0>(&mut sums, COLS);
    sums
}

/// The shapes of the registers: all are 16 rows of 64 bytes.
#[repr(C, align(64))]
struct Configuration {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

thread_local! {
    static IS_IN_USE: Cell<bool> = const { Cell::new(false) };
}

/// The tile registers of this thread, in use until it is dropped; not sent to another thread.
#[derive(Debug)]
pub struct Amx(PhantomData<*const ()>);

impl Amx {
    /// Takes the registers of this thread into use.
    ///
    /// # Panics
    /// Where another `Amx` is alive on this thread: the first that is dropped would take the registers from both.
    ///
    /// # Safety
    /// The processor must have the instructions and the process the permission.
    pub unsafe fn start() -> Self {
        assert!(!IS_IN_USE.replace(true), "the tile registers of this thread are in use");
        let mut configuration =
            Configuration { palette: 1, start_row: 0, reserved: [0; 14], row_bytes: [0; 16], rows: [0; 16] };
        configuration.row_bytes[..8].fill(TILE_ROW as u16);
        configuration.rows[..8].fill(COLS as u8);
        // SAFETY: passed on from the caller; 64 bytes are read.
        unsafe { asm!("ldtilecfg [{}]", in(reg) &configuration, options(nostack, readonly, preserves_flags)) };
        Amx(PhantomData)
    }
}

impl Drop for Amx {
    fn drop(&mut self) {
        // SAFETY: the instruction is there, since `start` was called. The system need not save the registers from here on.
        unsafe { asm!("tilerelease", options(nomem, nostack, preserves_flags)) };
        IS_IN_USE.set(false);
    }
}

impl Tiles for Amx {
    #[inline(always)]
    fn zero<const REGISTER: usize>(&mut self) {
        // SAFETY: the registers are in use while `self` lives.
        unsafe { asm!("tilezero tmm{}", const REGISTER, options(nomem, nostack, preserves_flags)) };
    }

    #[inline(always)]
    fn load<const REGISTER: usize>(&mut self, from: &Tile) {
        // SAFETY: as in `zero`; 16 rows of 64 bytes without gaps are the tile.
        unsafe {
            asm!("tileloadd tmm{}, [{} + {} * 1]", const REGISTER, in(reg) from, in(reg) TILE_ROW,
                options(nostack, readonly, preserves_flags));
        }
    }

    #[inline(always)]
    fn load_sums<const REGISTER: usize>(&mut self, from: &[f32], row: usize) {
        assert!((COLS - 1) * row + COLS <= from.len());
        // SAFETY: as in `zero`; the rows lie in the slice, as was just checked.
        unsafe {
            asm!("tileloadd tmm{}, [{} + {} * 1]", const REGISTER, in(reg) from.as_ptr(), in(reg) 4 * row,
                options(nostack, readonly, preserves_flags));
        }
    }

    #[inline(always)]
    fn multiply<const SUMS: usize, const LEFT: usize, const RIGHT: usize>(&mut self) {
        // SAFETY: as in `zero`.
        unsafe {
            asm!("tdpbf16ps tmm{}, tmm{}, tmm{}", const SUMS, const LEFT, const RIGHT,
                options(nomem, nostack, preserves_flags));
        }
    }

    #[inline(always)]
    fn store<const REGISTER: usize>(&self, to: &mut [f32], row: usize) {
        assert!((COLS - 1) * row + COLS <= to.len());
        // SAFETY: as in `zero`; the rows lie in the slice, as was just checked.
        unsafe {
            asm!("tilestored [{} + {} * 1], tmm{}", in(reg) to.as_mut_ptr(), in(reg) 4 * row, const REGISTER,
                options(nostack, preserves_flags));
        }
    }
}
