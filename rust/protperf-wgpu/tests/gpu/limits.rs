//! Calls that are large in one way or another: right, or a clear error.

use crate::available::has_gpu;
use crate::harness::{Case, Map, PARTS, Typed, args, error, run};
use protperf_core::backend::{Backend, Outputs};
use protperf_core::reference::Reference;
use protperf_core::{Error, Execution, FeatureMap};
use protperf_wgpu::{Wgpu, adapters};
use std::sync::atomic::AtomicBool;

fn forward(backend: &dyn Backend<f32>, case: &Case) -> Result<Vec<f64>, Error> {
    let data = case.data(3);
    let typed = Typed::new(&data);
    let args = args(case, &data, &typed);
    let (mut out, mut den) = (vec![f32::NAN; data.grad.len()], vec![f32::NAN; case.heads.0 * case.q_len * 2]);
    let cancel = AtomicBool::new(false);
    let outputs = Outputs { state_in: None, out: &mut out, den: &mut den, state_out: None };
    backend.forward(&args, outputs, &Execution { num_threads: 1, cancel: &cancel })?;
    Ok(out.iter().map(|&x| f64::from(x)).collect())
}

#[test]
fn a_hundred_thousand_positions_match() {
    if !has_gpu() {
        return;
    }
    let case = Case { states: false, ..Case::new(Map::Named(FeatureMap::Positive), true, 100_000, [2, 1, 4]) };
    let truth = forward(&Reference, &case).unwrap();
    let off = error(&forward(&Wgpu, &case).unwrap(), &truth);
    assert!(off < 3e-5, "{off:.1e}");
}

/// 70,000 rows of 32 projections are 35,000 workgroups of `pull_back`; the first axis of a grid has 32,768.
#[test]
fn more_workgroups_than_one_axis_has_match() {
    if !has_gpu() {
        return;
    }
    let case = Case { states: false, ..Case::new(Map::Named(FeatureMap::Elu1), false, 70_000, [2, 1, 32]) };
    let data = case.data(3);
    let truth = run::<f32>(&Reference, &case, &data, None, None, 1);
    let found = run::<f32>(&Wgpu, &case, &data, None, None, 1);
    for (part, name) in PARTS.iter().enumerate() {
        let off = error(&found.parts[part], &truth.parts[part]);
        assert!(off < 3e-5, "{name} {off:.1e}");
    }
}

#[test]
fn what_the_gpu_has_no_room_for_is_an_error_that_says_so_and_the_next_call_works() {
    if !has_gpu() {
        return;
    }
    let chosen = adapters().0.into_iter().find(|adapter| adapter.is_chosen).unwrap();
    let case = |len, num_features| Case {
        states: false,
        ..Case::new(Map::Named(FeatureMap::Elu1), false, len, [1, 1, num_features])
    };
    let message = forward(&Wgpu, &case(1, 40_000)).unwrap_err().to_string();
    assert!(message.starts_with("features: 40000 are more than the 25000"), "{message}");
    let len = 1 + chosen.max_binding as usize / (8 * 24_000);
    if len < 1_000 {
        let message = forward(&Wgpu, &case(len, 24_000)).unwrap_err().to_string();
        assert!(message.starts_with("features: ") && message.contains("binds at most"), "{message}");
    }
    assert!(forward(&Wgpu, &case(400, 2)).is_ok());
}

#[test]
fn a_raised_flag_stops_a_call() {
    if !has_gpu() {
        return;
    }
    let case = Case::new(Map::Named(FeatureMap::Positive), true, 20, [2, 2, 4]);
    let data = case.data(3);
    let typed = Typed::<f32>::new(&data);
    let (mut out, mut den) = (vec![0.0; data.grad.len()], vec![0.0; 40]);
    let outputs = Outputs { state_in: None, out: &mut out, den: &mut den, state_out: None };
    let cancel = AtomicBool::new(true);
    let run = Execution { num_threads: 1, cancel: &cancel };
    assert_eq!(Wgpu.forward(&args(&case, &data, &typed), outputs, &run), Err(Error::Interrupted));
}
