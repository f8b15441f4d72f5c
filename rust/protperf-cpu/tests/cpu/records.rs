//! Log-linear records, the general form of the exponential maps: every field of its own, and gradients to each.

use crate::harness::{Case, Map, PARTS, bits, error, first_state, run};
use protperf_core::FeatureMap;
use protperf_core::reference::Reference;
use protperf_cpu::{Cpu, Isa};

/// Every choice of optional fields.
fn choices() -> impl Iterator<Item = [bool; 4]> {
    (0..16).map(|at| std::array::from_fn(|field| at >> field & 1 == 1))
}

#[test]
fn every_field_and_its_gradient_match_the_reference() {
    for has in choices() {
        for (causal, per_head) in [(false, false), (true, true), (true, false), (false, true)] {
            for dims in [[5, 3, 18], [17, 16, 66]] {
                let case =
                    Case { heads: (2, 1), per_head, masked: true, ..Case::new(Map::Record(has), causal, 70, dims) };
                let data = case.data(2);
                let (wide, narrow) = (first_state::<f64>(&case, 3), first_state::<f32>(&case, 3));
                let truth = run::<f64>(&Reference, &case, &data, Some(&wide), None, 1);
                for isa in Isa::available() {
                    let found = run::<f64>(&Cpu::new(isa), &case, &data, Some(&wide), Some(&truth.references), 2);
                    let found32 = run::<f32>(&Cpu::new(isa), &case, &data, Some(&narrow), Some(&truth.references), 1);
                    for (part, name) in PARTS.iter().enumerate() {
                        let off = error(&found.parts[part], &truth.parts[part]);
                        assert!(off < 1e-11, "{name} f64 {off:.1e} {isa:?} {case:?}");
                        let off = error(&found32.parts[part], &truth.parts[part]);
                        assert!(off < 3e-5, "{name} f32 {off:.1e} {isa:?} {case:?}");
                    }
                }
            }
        }
    }
}

#[test]
fn a_record_of_directions_alone_has_the_bits_of_the_positive_map() {
    for causal in [false, true] {
        for len in [1, 65, 200] {
            for rise in [0.0, 20.0] {
                let named = Case {
                    rise,
                    heads: (2, 2),
                    ..Case::new(Map::Named(FeatureMap::Positive), causal, len, [7, 5, 70])
                };
                let record = Case { map: Map::Record([false; 4]), ..named.clone() };
                let data = named.data(4);
                let first = first_state::<f32>(&named, 5);
                for isa in Isa::available() {
                    let expected = run::<f32>(&Cpu::new(isa), &named, &data, Some(&first), None, 1);
                    let found = run::<f32>(&Cpu::new(isa), &record, &data, Some(&first), None, 1);
                    for (part, name) in PARTS.iter().enumerate() {
                        assert!(bits(&found.parts[part]) == bits(&expected.parts[part]), "{name} {isa:?} {named:?}");
                    }
                }
            }
        }
    }
}

/// A constant that all features share cancels in the quotient, however large: references are relative.
#[test]
fn constants_of_any_size_cancel() {
    let case = Case { states: false, ..Case::new(Map::Record([false, false, true, true]), true, 90, [6, 4, 20]) };
    let data = case.data(8);
    let mut shifted = data.clone();
    shifted.fields[3].iter_mut().for_each(|c| *c += 500.0);
    shifted.fields[4].iter_mut().for_each(|c| *c -= 3000.0);
    for isa in Isa::available() {
        let (expected, found) = (
            run::<f64>(&Cpu::new(isa), &case, &data, None, None, 1),
            run::<f64>(&Cpu::new(isa), &case, &shifted, None, None, 1),
        );
        for (part, name) in PARTS.iter().enumerate() {
            let off = error(&found.parts[part], &expected.parts[part]);
            assert!(off < 1e-10, "{name} {off:.1e} {isa:?}");
        }
    }
}
