//! Memory on the device, and that which a later stage of the same work may have again.

use std::mem::forget;
use std::process;
use std::sync::{Arc, Mutex, PoisonError};
use wgpu::Buffer;

/// Numbers on the device.
///
/// In a forked child a driver hangs where its parent's memory is given back, so there it is left alone.
pub struct OnDevice {
    /// `None` only while it is dropped.
    buffer: Option<Buffer>,
    /// Size in bytes without what pads an empty buffer, or one that had more before.
    pub(crate) bytes: u64,
    process: u32,
    lender: Option<Spare>,
}

/// Buffers whose work is recorded. Whoever takes one writes to it later than all that was recorded before.
#[derive(Clone, Default)]
pub struct Spare(Arc<Mutex<Vec<Buffer>>>);

impl OnDevice {
    /// The first bytes of a buffer.
    pub(crate) fn new(buffer: Buffer, bytes: u64) -> Self {
        OnDevice { buffer: Some(buffer), bytes, process: process::id(), lender: None }
    }

    /// The same, given back when it is dropped.
    pub(crate) fn lent_by(mut self, lender: &Spare) -> Self {
        self.lender = Some(lender.clone());
        self
    }

    pub(crate) fn buffer(&self) -> &Buffer {
        let Some(buffer) = &self.buffer else { unreachable!("a buffer is taken only when it is dropped") };
        buffer
    }
}

impl Drop for OnDevice {
    fn drop(&mut self) {
        let Some(buffer) = self.buffer.take() else { return };
        if self.process != process::id() {
            forget(buffer);
        } else if let Some(lender) = &self.lender {
            lender.0.lock().unwrap_or_else(PoisonError::into_inner).push(buffer);
        }
    }
}

impl Spare {
    /// The smallest buffer that has room and is not wastefully large.
    pub(crate) fn take(&self, bytes: u64) -> Option<OnDevice> {
        let mut buffers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let fits = |buffer: &Buffer| buffer.size() >= bytes && buffer.size() / 4 <= bytes;
        let found = (0..buffers.len()).filter(|&at| fits(&buffers[at])).min_by_key(|&at| buffers[at].size())?;
        Some(OnDevice::new(buffers.swap_remove(found), bytes).lent_by(self))
    }
}
