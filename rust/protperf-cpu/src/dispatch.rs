//! Which instruction set runs: chosen once from what the processor has, or forced by `PROTPERF_ISA`.

use protperf_core::{Error, Result};
use std::sync::OnceLock;

/// An instruction set tier.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Isa {
    /// Plain arrays: every processor.
    Scalar,
    /// AVX2 and FMA.
    Avx2,
    /// AVX-512 F, BW, DQ, VL, CD.
    Avx512,
    /// NEON: the generic loops with a fused multiply-add.
    Neon,
}

impl Isa {
    /// Slowest first.
    const ALL: [Isa; 4] = [Isa::Scalar, Isa::Neon, Isa::Avx2, Isa::Avx512];

    /// The name in `PROTPERF_ISA`.
    pub fn name(self) -> &'static str {
        match self {
            Isa::Scalar => "scalar",
            Isa::Avx2 => "avx2",
            Isa::Avx512 => "avx512",
            Isa::Neon => "neon",
        }
    }

    /// Whether this processor runs the tier; allocates nothing.
    pub fn is_available(self) -> bool {
        match self {
            Isa::Scalar => cfg!(not(target_arch = "aarch64")),
            Isa::Neon => cfg!(target_arch = "aarch64"),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => has_avx2(),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => has_avx512(),
            #[cfg(not(target_arch = "x86_64"))]
            Isa::Avx2 | Isa::Avx512 => false,
        }
    }

    /// Whether the tier runs here on pairs of AVX2's registers, with the bits that it has on its own. For tests, with the
    /// feature `emulate-avx512`; only who names the tier gets it.
    pub fn is_emulated(self) -> bool {
        let is_here = cfg!(feature = "emulate-avx512") && Isa::Avx2.is_available();
        is_here && self == Isa::Avx512 && !self.is_available()
    }

    /// Whether the tier runs here, emulated or not.
    pub fn can_run(self) -> bool {
        self.is_available() || self.is_emulated()
    }

    /// Every tier this processor runs, slowest first.
    pub fn available() -> Vec<Isa> {
        Isa::ALL.into_iter().filter(|isa| isa.is_available()).collect()
    }

    /// The tier of a name.
    ///
    /// # Errors
    /// [`Error::UnsupportedIsa`] where this processor lacks it or no such tier exists.
    pub fn from_name(name: &str) -> Result<Isa> {
        let found = Isa::ALL.into_iter().find(|isa| isa.can_run() && isa.name() == name);
        found.ok_or_else(|| Error::UnsupportedIsa {
            requested: format!("{name:?} (PROTPERF_ISA)"),
            available: Isa::available().iter().map(|isa| isa.name()).collect::<Vec<_>>().join(", "),
        })
    }

    /// `PROTPERF_ISA` where it is set, else the fastest tier; read once in a process.
    ///
    /// # Errors
    /// [`Error::UnsupportedIsa`] as [`Isa::from_name`].
    pub fn from_env() -> Result<Isa> {
        static CHOICE: OnceLock<Result<Isa>> = OnceLock::new();
        CHOICE
            .get_or_init(|| match std::env::var("PROTPERF_ISA") {
                Ok(name) if !name.is_empty() => Isa::from_name(&name),
                _ => Ok(*Isa::available().last().expect("every processor has a tier")),
            })
            .clone()
    }
}

#[cfg(target_arch = "x86_64")]
fn has_avx2() -> bool {
    is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma")
}

#[cfg(target_arch = "x86_64")]
fn has_avx512() -> bool {
    is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512dq")
        && is_x86_feature_detected!("avx512vl")
        && is_x86_feature_detected!("avx512cd")
}
