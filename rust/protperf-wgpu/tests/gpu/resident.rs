//! Tensors that stay on the device: the bits of a call on tensors of the host, of any type and with any contents.

use crate::available::has_gpu;
use crate::harness::{Case, Data, Map, Typed, args, bits, first_state, maps};
use protperf_core::backend::{Backend, Outputs};
use protperf_core::{Execution, FavorArgs, FeatureMap, Stored, TensorRef, bf16, f16};
use protperf_wgpu::{DeviceTensor, Resident, StoredAs, Wgpu, attention};
use std::sync::atomic::AtomicBool;

static GO_ON: AtomicBool = AtomicBool::new(false);

/// Output and final state.
type Found = [Vec<f64>; 2];

fn stored_as<S: Stored>() -> StoredAs {
    StoredAs::ALL.into_iter().find(|stored| stored.name() == S::NAME).unwrap()
}

fn upload<S: Stored<Compute = f32>>(numbers: &[S], shape: &[usize]) -> DeviceTensor {
    let bytes = |x: &S| match stored_as::<S>() {
        StoredAs::Float32 => x.widen().to_ne_bytes().to_vec(),
        StoredAs::Float16 => f16::from_f32(x.widen()).to_ne_bytes().to_vec(),
        StoredAs::BFloat16 => bf16::from_f32(x.widen()).to_ne_bytes().to_vec(),
    };
    DeviceTensor::upload(&numbers.iter().flat_map(bytes).collect::<Vec<u8>>(), shape, stored_as::<S>()).unwrap()
}

fn read(tensor: &DeviceTensor) -> Vec<f64> {
    let bytes = tensor.read(&GO_ON).unwrap();
    let number = |x: &[u8]| match tensor.stored() {
        StoredAs::Float32 => f32::from_ne_bytes(x.try_into().unwrap()).into(),
        StoredAs::Float16 => f16::from_ne_bytes(x.try_into().unwrap()).into(),
        StoredAs::BFloat16 => bf16::from_ne_bytes(x.try_into().unwrap()).into(),
    };
    bytes.chunks_exact(tensor.stored().size()).map(number).collect()
}

/// The same call on tensors of the host.
fn carried<S: Stored<Compute = f32>>(args: &FavorArgs<'_, S>, first: Option<&[f32]>) -> Found {
    let shape = args.validate().unwrap();
    let mut out = vec![S::default(); shape.out().iter().product()];
    let mut den = vec![0.0; shape.batch * shape.heads * shape.q_len * 2];
    let mut last = vec![0.0; shape.state().iter().product()];
    let outputs = Outputs { state_in: first, out: &mut out, den: &mut den, state_out: Some(&mut last) };
    Wgpu.forward(args, outputs, &Execution { num_threads: 1, cancel: &GO_ON }).unwrap();
    [out.iter().map(|x| x.widen().into()).collect(), last.iter().map(|&x| x.into()).collect()]
}

fn on_device<S: Stored<Compute = f32>>(
    args: &FavorArgs<'_, S>,
    [q, k, v]: [&[S]; 3],
    first: Option<&[f32]>,
) -> [DeviceTensor; 2] {
    // Shapes alone: no element of these is read.
    let blank = |name, from: &TensorRef<'_, S>| {
        let data: &[f32] = if from.shape().contains(&0) { &[] } else { &[0.0] };
        TensorRef::new(name, data, 0, from.shape(), [0; 4]).unwrap()
    };
    let blanks = FavorArgs {
        q: blank("q", &args.q),
        k: blank("k", &args.k),
        v: blank("v", &args.v),
        map: args.map,
        causal: args.causal,
        cu_seqlens: args.cu_seqlens,
        key_padding_mask: args.key_padding_mask,
    };
    let tensors = [(q, args.q.shape()), (k, args.k.shape()), (v, args.v.shape())];
    let [q, k, v] = tensors.map(|(numbers, shape)| upload(numbers, &shape));
    let state = first.map(|first| upload(first, &args.validate().unwrap().state()));
    let resident = Resident { q: &q, k: &k, v: &v, state: state.as_ref() };
    let run = Execution { num_threads: 1, cancel: &GO_ON };
    let (out, last) = attention(&blanks, resident, true, &run).unwrap();
    [out, last.unwrap()]
}

fn assert_same<S: Stored<Compute = f32>>(case: &Case, data: &Data, first: Option<&[f32]>, what: &str) {
    let typed = Typed::<S>::new(data);
    let args = args(case, data, &typed);
    let expected = carried(&args, first);
    let found = on_device(&args, [&typed.q, &typed.k, &typed.v], first);
    for ((found, expected), name) in found.iter().zip(&expected).zip(["out", "state"]) {
        assert!(bits(&read(found)) == bits(expected), "{name} {what} {} {case:?}", S::NAME);
    }
}

#[test]
fn what_stays_on_the_device_has_the_bits_of_what_is_carried_there_and_back() {
    if !has_gpu() {
        return;
    }
    for map in maps() {
        for causal in [false, true] {
            let case = Case { heads: (4, 2), per_head: true, ..Case::new(map, causal, 67, [6, 5, 9]) };
            let first = first_state::<f32>(&case, 6);
            assert_same::<f32>(&case, &case.data(5), Some(&first), "from a state");
            let masked = Case { batch: 2, masked: true, ..case.clone() };
            assert_same::<f16>(&masked, &masked.data(5), None, "masked");
            let packed = Case { borders: Some(vec![0, 0, 20, 21, 67, 67]), ..case };
            let first = first_state::<f32>(&packed, 6);
            assert_same::<bf16>(&packed, &packed.data(5), Some(&first), "packed");
        }
        for (q_len, kv_len) in [(9, 0), (0, 9), (1, 300)] {
            let case = Case { q_len, kv_len, heads: (2, 1), ..Case::new(map, false, 0, [5, 3, 10]) };
            assert_same::<f16>(&case, &case.data(5), None, "of other lengths");
        }
    }
}

#[test]
fn what_is_not_finite_and_what_is_extreme_is_met_as_on_the_host() {
    if !has_gpu() {
        return;
    }
    for causal in [false, true] {
        let case = Case { heads: (2, 1), ..Case::new(Map::Named(FeatureMap::Positive), causal, 40, [4, 3, 6]) };
        let packed = Case { borders: Some(vec![0, 10, 10, 40]), ..case.clone() };
        for case in [case.clone(), Case { masked: true, ..case }, packed] {
            let (data, first) = (case.data(1), first_state::<f32>(&case, 2));
            let mut changed = vec![data.clone(); 10];
            changed[0].q[5] = f64::NAN;
            changed[1].k[13 * 4] = f64::INFINITY;
            changed[2].v[7 * 3 + 1] = f64::NEG_INFINITY;
            changed[3].fields[0][3] = f64::NAN;
            changed[4].v.iter_mut().for_each(|x| *x *= 2f64.powi(124));
            // The numbers below the normal ones, of which devices may make zeros.
            changed[5].v.iter_mut().for_each(|x| *x *= 2f64.powi(-130));
            // Sizes that differ along the sequence and between its segments, and a beginning of zeros.
            let rows = |v: &mut Vec<f64>, size: fn(usize) -> f64| {
                v.iter_mut().enumerate().for_each(|(at, x)| *x *= size(at / 3 % 40));
            };
            rows(&mut changed[6].v, |row| if row < 10 { 1e-20 } else { 1e25 });
            rows(&mut changed[7].v, |row| if row < 10 { 1e30 } else { 1e-30 });
            rows(&mut changed[8].v, |row| 2f64.powi(6 * row as i32 - 120));
            rows(&mut changed[9].v, |row| if row < 20 { 0.0 } else { 1e-30 });
            for (at, data) in changed.iter().enumerate() {
                assert_same::<f32>(&case, data, None, &format!("change {at}"));
                assert_same::<bf16>(&case, data, None, &format!("change {at}"));
                assert_same::<f32>(&case, data, Some(&first), &format!("change {at} from a state"));
            }
            for column in 0..3 {
                let mut first = first.clone();
                first[5 + column] = f32::NAN;
                assert_same::<f32>(&case, &data, Some(&first), &format!("column {column} of the state"));
            }
        }
    }
}

/// Every number of 16 bits comes back from the device as it went there, through a head that reads its only key.
#[test]
fn every_number_of_16_bits_is_read_and_written_as_it_is() {
    if !has_gpu() {
        return;
    }
    let all: Vec<u16> = (0..=u16::MAX).collect();
    // A batch entry is one row of numbers that are all finite or none.
    let (batch, width) = (all.len() / 64, 64);
    let case = Case { states: false, ..Case::new(Map::Named(FeatureMap::Elu1), true, 1, [1, width, 1]) };
    let case = Case { batch, ..case };
    let data = case.data(1);
    for stored in [StoredAs::Float16, StoredAs::BFloat16] {
        let ones: Vec<u8> = match stored {
            StoredAs::Float16 => f16::ONE.to_ne_bytes().repeat(batch),
            _ => bf16::ONE.to_ne_bytes().repeat(batch),
        };
        let one = DeviceTensor::upload(&ones, &[batch, 1, 1, 1], stored).unwrap();
        let v = all.iter().flat_map(|x| x.to_ne_bytes()).collect::<Vec<u8>>();
        let v = DeviceTensor::upload(&v, &[batch, 1, 1, width], stored).unwrap();
        let typed = Typed::<f32>::new(&data);
        let run = Execution { num_threads: 1, cancel: &GO_ON };
        let resident = Resident { q: &one, k: &one, v: &v, state: None };
        let (out, _) = attention(&args(&case, &data, &typed), resident, false, &run).unwrap();
        let wide = |bits: u16| match stored {
            StoredAs::Float16 => f32::from(f16::from_bits(bits)),
            _ => f32::from(bf16::from_bits(bits)),
        };
        let found = out.read(&GO_ON).unwrap();
        for (bits, found) in all.iter().zip(found.chunks_exact(2)) {
            let (given, found) = (wide(*bits), wide(u16::from_ne_bytes(found.try_into().unwrap())));
            // A value that is not finite makes NaN.
            assert!(found == given || found.is_nan() && !given.is_finite(), "{bits:#06x} {given:e} {found:e}");
        }
    }
}

/// Means of values that cancel, or that have small weights next to huge ones, down to below the normal numbers.
#[test]
fn results_below_the_normal_numbers_are_the_same() {
    if !has_gpu() {
        return;
    }
    for causal in [false, true] {
        for map in [FeatureMap::Positive, FeatureMap::Relu, FeatureMap::Trigonometric] {
            let case = Case { heads: (2, 1), ..Case::new(Map::Named(map), causal, 90, [4, 3, 6]) };
            for seed in 0..8 {
                let mut data = case.data(seed);
                for (at, v) in data.v.iter_mut().enumerate() {
                    let power = (at as i32 * 37 + seed as i32 * 11) % 240 - 126;
                    *v = v.clamp(-1.9, 1.9) * 2f64.powi(power) * f64::from(u8::from(at % 3 < 2 || at % 7 == 0));
                    if at % 3 == 2 {
                        *v *= 2f64.powi(-20 - power);
                    }
                    if at % 3 == 1 {
                        *v *= 2f64.powi(-power - 126);
                    }
                }
                assert_same::<f32>(&case, &data, None, &format!("seed {seed}"));
            }
        }
    }
}

/// Estimates whose denominators cancel leave the hull of the values, and the range of float16.
#[test]
fn estimates_beyond_the_range_of_16_bits_are_the_same() {
    if !has_gpu() {
        return;
    }
    for causal in [false, true] {
        let case = Case { heads: (2, 1), ..Case::new(Map::Named(FeatureMap::Trigonometric), causal, 90, [4, 3, 6]) };
        let case = Case { scale: 2.0, ..case };
        for seed in 0..8 {
            let mut data = case.data(seed);
            data.v.iter_mut().for_each(|v| *v *= 2e4);
            assert_same::<f16>(&case, &data, None, &format!("seed {seed}"));
            data.v.iter_mut().for_each(|v| *v *= 2f64.powi(112));
            assert_same::<bf16>(&case, &data, None, &format!("seed {seed}"));
        }
    }
}

#[test]
fn a_tensor_of_another_shape_is_refused() {
    if !has_gpu() {
        return;
    }
    let case = Case { states: false, ..Case::new(Map::Named(FeatureMap::Relu), false, 8, [2, 2, 4]) };
    let data = case.data(1);
    let typed = Typed::<f32>::new(&data);
    let [whole, short] = [8, 7].map(|len| upload(&typed.q[..len * 2], &[1, 1, len, 2]));
    let run = Execution { num_threads: 1, cancel: &GO_ON };
    let resident = Resident { q: &whole, k: &short, v: &whole, state: None };
    let error = attention(&args(&case, &data, &typed), resident, false, &run).err().unwrap().to_string();
    assert_eq!(error, "k has [1, 1, 7, 2] where [1, 1, 8, 2] is needed");
}
