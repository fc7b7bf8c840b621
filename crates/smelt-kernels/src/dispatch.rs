//! Which instruction set the kernels use: found once, or named by the caller.

use std::fmt;
use std::sync::OnceLock;

#[cfg(target_arch = "x86_64")]
use crate::arch::avx2::Avx2;
#[cfg(target_arch = "aarch64")]
use crate::arch::neon::Neon;
use crate::arch::scalar::Scalar;
use crate::arch::{Kernel, Simd};

/// An instruction set that the kernels are written for. All of them give the same bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Isa {
    /// Plain Rust, on any CPU.
    Scalar,
    /// 256-bit vectors of x86-64.
    Avx2,
    /// 128-bit vectors of 64-bit Arm, two at a time.
    Neon,
}

impl Isa {
    /// Every instruction set, the fastest last.
    const ALL: [Self; 3] = [Self::Scalar, Self::Avx2, Self::Neon];

    /// The instruction sets of this CPU, the fastest last.
    pub fn available() -> Vec<Self> {
        Self::ALL.into_iter().filter(|isa| isa.engine().is_some()).collect()
    }

    /// The fastest one of this CPU, or the one that the environment variable `SMELT_SIMD` names
    /// (`scalar`, `avx2`, `neon`) if the CPU has it. Found at the first call.
    pub fn best() -> Self {
        static BEST: OnceLock<Isa> = OnceLock::new();
        *BEST.get_or_init(|| {
            let wanted = std::env::var("SMELT_SIMD").ok();
            Self::choose(&Self::available(), wanted.as_deref())
        })
    }

    /// The one called `wanted` among `available`, else the last.
    fn choose(available: &[Self], wanted: Option<&str>) -> Self {
        let named = available.iter().find(|isa| wanted == Some(isa.name()));
        named.or(available.last()).copied().unwrap_or(Self::Scalar)
    }

    /// Its name in `SMELT_SIMD` and in reports.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Scalar => "scalar",
            Self::Avx2 => "avx2",
            Self::Neon => "neon",
        }
    }

    /// What runs kernels with these instructions, or `None` if this CPU lacks them.
    pub(crate) fn engine(self) -> Option<Engine> {
        match self {
            Self::Scalar => Some(Engine::Scalar(Scalar)),
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => Avx2::new().map(Engine::Avx2),
            #[cfg(target_arch = "aarch64")]
            Self::Neon => Neon::new().map(Engine::Neon),
            _ => None,
        }
    }
}

impl fmt::Display for Isa {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(self.name())
    }
}

/// The token of an instruction set that this CPU has.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Engine {
    Scalar(Scalar),
    #[cfg(target_arch = "x86_64")]
    Avx2(Avx2),
    #[cfg(target_arch = "aarch64")]
    Neon(Neon),
}

impl Engine {
    /// Runs `kernel` with these instructions.
    pub(crate) fn run<K: Kernel>(self, kernel: K) -> K::Output {
        match self {
            Self::Scalar(s) => s.vectorize(kernel),
            #[cfg(target_arch = "x86_64")]
            Self::Avx2(s) => s.vectorize(kernel),
            #[cfg(target_arch = "aarch64")]
            Self::Neon(s) => s.vectorize(kernel),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_chooses_only_among_what_is_there() {
        let available = [Isa::Scalar, Isa::Avx2];
        assert_eq!(Isa::choose(&available, None), Isa::Avx2);
        assert_eq!(Isa::choose(&available, Some("scalar")), Isa::Scalar);
        assert_eq!(Isa::choose(&available, Some("neon")), Isa::Avx2);
        assert_eq!(Isa::choose(&[Isa::Scalar], Some("avx2")), Isa::Scalar);
    }

    #[test]
    fn plain_rust_is_always_there_and_first() {
        assert_eq!(Isa::available()[0], Isa::Scalar);
    }
}
