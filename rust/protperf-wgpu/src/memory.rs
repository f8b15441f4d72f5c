//! Memory on the device, and that which a later stage of the same work may have again.

use crate::error::GpuError;
use std::mem::forget;
use std::process;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use wgpu::Buffer;

/// The variable that says how much of the device's memory may be used.
pub const BUDGET: &str = "PROTPERF_GPU_MEMORY";

/// Numbers on the device.
pub struct OnDevice {
    /// `None` only while it is dropped.
    held: Option<Held>,
    /// Size in bytes without what pads an empty buffer, or one that had more before.
    pub(crate) bytes: u64,
    lender: Option<Spare>,
}

/// A buffer that counts as used until it is dropped.
///
/// In a forked child a driver hangs where its parent's memory is given back, so there it is left alone.
pub struct Held {
    /// `None` only while it is dropped.
    buffer: Option<Buffer>,
    process: u32,
    used: Arc<AtomicU64>,
}

/// Buffers whose work is recorded. Whoever takes one writes to it later than all that was recorded before.
#[derive(Clone, Default)]
pub struct Spare(Arc<Mutex<Vec<Held>>>);

/// How much of the device's memory is used, and may be.
#[derive(Default)]
pub struct Account {
    used: Arc<AtomicU64>,
    /// 0: as much as there is.
    budget: AtomicU64,
}

impl Account {
    /// Reads what may be used.
    ///
    /// # Errors
    /// [`GpuError::UnknownBudget`].
    pub fn read_budget(&self) -> Result<(), GpuError> {
        let found = std::env::var(BUDGET).ok();
        let budget = found.as_deref().map(str::trim).filter(|text| !text.is_empty()).map(parsed).transpose()?;
        self.budget.store(budget.unwrap_or(0), Ordering::Relaxed);
        Ok(())
    }

    /// Bytes that are used.
    pub fn used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    /// Bytes that may be used, where something says so.
    pub fn budget(&self) -> Option<u64> {
        Some(self.budget.load(Ordering::Relaxed)).filter(|&budget| budget > 0)
    }

    /// Whether the budget has room for so many bytes more.
    pub fn has_room(&self, bytes: u64) -> bool {
        self.budget().is_none_or(|budget| self.used() + bytes <= budget)
    }

    /// A buffer that counts as used.
    pub fn hold(&self, buffer: Buffer) -> Held {
        self.used.fetch_add(buffer.size(), Ordering::Relaxed);
        Held { buffer: Some(buffer), process: process::id(), used: Arc::clone(&self.used) }
    }
}

/// Bytes, or with K, M or G units of 1024 bytes and their powers.
fn parsed(text: &str) -> Result<u64, GpuError> {
    let (digits, unit) = match text.char_indices().next_back() {
        Some((at, last)) if last.is_ascii_alphabetic() => (&text[..at], last.to_ascii_uppercase()),
        _ => (text, ' '),
    };
    let power = [' ', 'K', 'M', 'G'].iter().position(|&known| known == unit);
    let bytes = power.zip(digits.parse::<u64>().ok()).and_then(|(power, n)| n.checked_mul(1 << (10 * power)));
    bytes.filter(|&bytes| bytes > 0).ok_or_else(|| GpuError::UnknownBudget { found: text.to_owned() })
}

impl Held {
    pub fn buffer(&self) -> &Buffer {
        let Some(buffer) = &self.buffer else { unreachable!("a buffer is taken only when it is dropped") };
        buffer
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let Some(buffer) = self.buffer.take() else { return };
        self.used.fetch_sub(buffer.size(), Ordering::Relaxed);
        if self.process != process::id() {
            forget(buffer);
        }
    }
}

impl OnDevice {
    /// The first bytes of a buffer.
    pub(crate) fn new(held: Held, bytes: u64) -> Self {
        OnDevice { held: Some(held), bytes, lender: None }
    }

    /// The same, given back when it is dropped.
    pub(crate) fn lent_by(mut self, lender: &Spare) -> Self {
        self.lender = Some(lender.clone());
        self
    }

    pub(crate) fn buffer(&self) -> &Buffer {
        let Some(held) = &self.held else { unreachable!("a buffer is taken only when it is dropped") };
        held.buffer()
    }
}

impl Drop for OnDevice {
    fn drop(&mut self) {
        let Some(held) = self.held.take() else { return };
        if let Some(lender) = self.lender.as_ref().filter(|_| held.process == process::id()) {
            lender.0.lock().unwrap_or_else(PoisonError::into_inner).push(held);
        }
    }
}

impl Spare {
    /// The smallest buffer that has room and is not wastefully large.
    pub(crate) fn take(&self, bytes: u64) -> Option<OnDevice> {
        let mut buffers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let size = |at: &usize| buffers[*at].buffer().size();
        let fits = |at: &usize| size(at) >= bytes && size(at) / 4 <= bytes;
        let found = (0..buffers.len()).filter(fits).min_by_key(size)?;
        Some(OnDevice::new(buffers.swap_remove(found), bytes).lent_by(self))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_budget_is_bytes_or_a_number_with_a_unit() {
        for (text, bytes) in [("1000", 1000), ("3k", 3 << 10), ("512M", 512 << 20), ("4G", 4 << 30)] {
            assert_eq!(parsed(text), Ok(bytes));
        }
        for text in ["0", "-1", "G", "4T", "4.5G", "99999999999G", "4 GB"] {
            let message = parsed(text).unwrap_err().to_string();
            assert!(message.contains(text) && message.contains("such as 4G"), "{message}");
        }
    }
}
