//! Which GPUs there are, and which of them is used.
//!
//! `PROTPERF_GPU` is an index into the list, a part of a name, or `off`; digits alone are an index. Without it the first
//! discrete GPU is used, else the first integrated or virtual one. An adapter that computes on the processor is used only
//! where it is asked for: as a silent default it would be slower than the CPU backend.

use crate::error::GpuError;
use wgpu::{Adapter, DeviceType, Instance, InstanceDescriptor, InstanceFlags};

/// The variable that chooses an adapter.
pub const CHOICE: &str = "PROTPERF_GPU";

/// What is known of an adapter before it is opened.
#[derive(Clone, Debug, PartialEq)]
pub struct AdapterSummary {
    /// Position in the list.
    pub index: usize,
    /// The driver's name of it.
    pub name: String,
    /// `discrete`, `integrated`, `virtual`, `processor` or `other`.
    pub kind: &'static str,
    /// The interface to the driver: `vulkan`, `metal` or `dx12`.
    pub interface: String,
    /// The driver with its version.
    pub driver: String,
    /// The largest buffer that a shader may bind, in bytes.
    pub max_binding: u64,
    /// Whether [`crate::Wgpu`] would use it.
    pub is_chosen: bool,
}

/// Every adapter of this machine, none where no driver is installed; and why none of them would be used, if so.
pub fn adapters() -> (Vec<AdapterSummary>, Option<GpuError>) {
    let found = enumerate();
    let (chosen, fault) = choose(&found).map_or_else(|fault| (None, Some(fault)), |index| (Some(index), None));
    let summary = |(index, adapter): (usize, &Adapter)| {
        let info = adapter.get_info();
        AdapterSummary {
            index,
            kind: kind(info.device_type),
            interface: info.backend.to_str().to_owned(),
            driver: format!("{} {}", info.driver, info.driver_info).trim().to_owned(),
            max_binding: adapter.limits().max_storage_buffer_binding_size,
            is_chosen: chosen == Some(index),
            name: info.name,
        }
    };
    (found.iter().enumerate().map(summary).collect(), fault)
}

/// The adapter to use.
///
/// # Errors
/// [`GpuError::SwitchedOff`], [`GpuError::NoAdapter`], [`GpuError::UnknownAdapter`], [`GpuError::UnknownIndex`].
pub fn chosen_adapter() -> Result<Adapter, GpuError> {
    let mut found = enumerate();
    let index = choose(&found)?;
    Ok(found.swap_remove(index))
}

fn enumerate() -> Vec<Adapter> {
    // No debug layers: where they are installed they cost time and write to the terminal.
    let flags = InstanceFlags::empty();
    let instance = Instance::new(InstanceDescriptor { flags, ..InstanceDescriptor::new_without_display_handle() });
    pollster::block_on(instance.enumerate_adapters(wgpu::Backends::all()))
}

fn choose(found: &[Adapter]) -> Result<usize, GpuError> {
    let known: Vec<_> = found.iter().map(Adapter::get_info).map(|info| (info.name, info.device_type)).collect();
    choose_among(&known, std::env::var(CHOICE).ok().as_deref())
}

fn choose_among(known: &[(String, DeviceType)], requested: Option<&str>) -> Result<usize, GpuError> {
    let named = |index: usize| format!("{index} ({})", known[index].0);
    let available = || (0..known.len()).map(named).collect();
    match requested.map(str::trim).filter(|requested| !requested.is_empty()) {
        Some(requested) if requested.eq_ignore_ascii_case("off") => Err(GpuError::SwitchedOff),
        Some(_) if known.is_empty() => Err(GpuError::NoAdapter { on_processor: Vec::new() }),
        // Names have digits too, so digits alone would find an adapter that was not meant.
        Some(requested) if requested.bytes().all(|digit| digit.is_ascii_digit()) => {
            let index = requested.parse().ok().filter(|&index: &usize| index < known.len());
            index.ok_or_else(|| GpuError::UnknownIndex { requested: requested.to_owned(), available: available() })
        }
        Some(requested) => {
            let part = requested.to_lowercase();
            let found = known.iter().position(|(name, _)| name.to_lowercase().contains(&part));
            found.ok_or_else(|| GpuError::UnknownAdapter { requested: requested.to_owned(), available: available() })
        }
        None => {
            let best = (0..known.len()).filter(|&index| known[index].1 != DeviceType::Cpu);
            let best = best.min_by_key(|&index| rank(known[index].1));
            best.ok_or_else(|| GpuError::NoAdapter { on_processor: available() })
        }
    }
}

fn rank(kind: DeviceType) -> usize {
    [DeviceType::DiscreteGpu, DeviceType::IntegratedGpu, DeviceType::VirtualGpu]
        .iter()
        .position(|&better| better == kind)
        .unwrap_or(usize::MAX)
}

fn kind(kind: DeviceType) -> &'static str {
    match kind {
        DeviceType::DiscreteGpu => "discrete",
        DeviceType::IntegratedGpu => "integrated",
        DeviceType::VirtualGpu => "virtual",
        DeviceType::Cpu => "processor",
        DeviceType::Other => "other",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known() -> Vec<(String, DeviceType)> {
        vec![
            ("llvmpipe (LLVM 15)".into(), DeviceType::Cpu),
            ("Iris Xe".into(), DeviceType::IntegratedGpu),
            ("RTX 4060".into(), DeviceType::DiscreteGpu),
        ]
    }

    #[test]
    fn a_discrete_gpu_comes_first_and_the_processor_only_by_name_or_index() {
        let known = known();
        assert_eq!(choose_among(&known, None), Ok(2));
        assert_eq!(choose_among(&known[..2], None), Ok(1));
        assert_eq!(choose_among(&known, Some("LLVMpipe")), Ok(0));
        assert_eq!(choose_among(&known, Some("0")), Ok(0));
        assert_eq!(choose_among(&known, Some(" ")), Ok(2));
        let error = choose_among(&known[..1], None).unwrap_err();
        assert_eq!(error, GpuError::NoAdapter { on_processor: vec!["0 (llvmpipe (LLVM 15))".into()] });
    }

    #[test]
    fn what_is_not_there_is_an_error_that_lists_what_is() {
        assert_eq!(choose_among(&known(), Some("off")), Err(GpuError::SwitchedOff));
        for requested in ["3", "radeon"] {
            let error = choose_among(&known(), Some(requested)).unwrap_err().to_string();
            assert!(error.contains(requested) && error.contains("1 (Iris Xe)"), "{error}");
        }
    }

    /// The one adapter of many machines has digits in its name.
    #[test]
    fn a_number_is_an_index_and_never_a_part_of_a_name() {
        let known = [("llvmpipe (LLVM 15.0.6, 256 bits)".to_owned(), DeviceType::Cpu)];
        assert_eq!(choose_among(&known, Some("0")), Ok(0));
        for requested in ["1", "2", "5", "6", "15", "256", "99999999999999999999999"] {
            let error = choose_among(&known, Some(requested)).unwrap_err().to_string();
            assert!(error.contains(requested) && error.contains("no adapter has the index"), "{error}");
            assert!(error.contains("0 (llvmpipe (LLVM 15.0.6, 256 bits))"), "{error}");
        }
        assert_eq!(choose_among(&known, Some("LLVM 15")), Ok(0));
        assert_eq!(choose_among(&known, Some("256 bits")), Ok(0));
    }

    #[test]
    fn off_is_off_in_any_case() {
        for requested in ["off", "OFF", " Off "] {
            assert_eq!(choose_among(&known(), Some(requested)), Err(GpuError::SwitchedOff));
        }
    }

    #[test]
    fn where_no_adapter_is_found_the_message_says_what_to_install_for_every_request() {
        for requested in [None, Some("llvmpipe"), Some("0"), Some("7")] {
            let error = choose_among(&[], requested).unwrap_err().to_string();
            assert!(error.contains("no GPU was found") && error.contains("mesa-vulkan-drivers"), "{error}");
            assert!(!error.contains("none of the adapters"), "{error}");
        }
        assert_eq!(choose_among(&[], Some("off")), Err(GpuError::SwitchedOff));
    }
}
