//! Running the CPU backend on a case.

use super::subjects::answer;
use super::{Answer, Case, Data};
use protperf::{Backend, Cpu, CpuElement, Isa};

/// How a kernel runs.
#[derive(Clone, Copy, Debug)]
pub struct How {
    pub isa: Isa,
    pub num_threads: usize,
}

/// Every instruction set of this machine, on two threads.
pub fn every_isa() -> Vec<How> {
    Isa::available().into_iter().map(|isa| How { isa, num_threads: 2 }).collect()
}

/// One instruction set on so many threads.
pub fn on_threads<const N: usize>(numbers: [usize; N], isa: Isa) -> [How; N] {
    numbers.map(|num_threads| How { isa, num_threads })
}

/// The kernels' answer in T; what they should fill is NaN before.
pub fn kernel<T: CpuElement>(case: &Case, data: &Data, how: How) -> Answer
where
    Cpu: Backend<T>,
{
    answer::<T>(&Cpu::new(how.isa), case, data, how.num_threads)
}
