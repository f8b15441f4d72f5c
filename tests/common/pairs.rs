//! Attention as sums over all pairs and features, once in f64 (the truth's independent writing) and once in f32
//! (the plain evaluation whose error bounds that of the kernels).

use super::{Answer, Case, Data, Directions, is_signed, norm, sees};
use protperf::{Activation, Family, FeatureMap, Parameters};
use std::f64::consts::PI;

macro_rules! pairs {
    ($module:ident, $float:ty) => {
        pub mod $module {
            use super::*;

            type Float = $float;

            fn cast(x: &[f64]) -> Vec<Float> {
                x.iter().map(|&x| x as Float).collect()
            }

            /// Each term is relative to the largest of its row; one query after another.
            pub fn plain(case: &Case, data: &Data) -> Answer {
                evaluate::<false>(case, data)
            }

            /// The same sums with the absolute value of every term, over the same denominators: what rounding a term
            /// once is measured in.
            pub fn magnitudes(case: &Case, data: &Data) -> Answer {
                evaluate::<true>(case, data)
            }

            fn evaluate<const ABSOLUTE: bool>(case: &Case, data: &Data) -> Answer {
                let heads = case.heads.0;
                let zeros = |x: &[f64]| vec![0.0; x.len()];
                let mut answer =
                    [zeros(&data.grad), zeros(&data.q), zeros(&data.k), zeros(&data.v), zeros(&data.omega)];
                for batch_head in 0..case.batch * heads {
                    let matrix = case.num_features * case.head_dim;
                    let start = if case.directions == Directions::PerHead { batch_head % heads * matrix } else { 0 };
                    let own = match case.directions {
                        Directions::Axes => Parameters::of_directions(axes(case.head_dim)),
                        _ => case.map.parameters(&data.omega[start..start + matrix], case.head_dim).unwrap(),
                    };
                    assert!(own.key_directions.is_none(), "see tests/kernels/parameters.rs");
                    let head = Head::<ABSOLUTE>::new(case, data, batch_head, &own);
                    let gradient = head.run(case, data, batch_head, &own, &mut answer);
                    if case.directions != Directions::Axes {
                        let omega = &data.omega[start..start + matrix];
                        let domega = &mut answer[4][start..start + matrix];
                        if ABSOLUTE {
                            let directions = [&own.query_directions, &gradient.query_directions];
                            add_magnitudes(case, omega, directions, domega);
                        } else {
                            case.map.add_omega_gradient(omega, case.head_dim, &gradient, domega);
                        }
                    }
                }
                answer
            }

            /// Magnitudes of the gradient of omega from those of the directions', for any recipe: a row that
            /// was scaled passes on its gradient with that factor, or only what is tangent of it.
            fn add_magnitudes(case: &Case, omega: &[f64], [weights, gradient]: [&Vec<f64>; 2], domega: &mut [f64]) {
                let d = case.head_dim;
                for (at, &g) in gradient.iter().enumerate() {
                    let (row, direction) = (at % omega.len() / d * d, at / d * d);
                    let scale = norm(&weights[direction..][..d]) / norm(&omega[row..][..d]);
                    domega[at % omega.len()] += scale * g;
                }
            }

            fn axes(head_dim: usize) -> Vec<f64> {
                (0..head_dim * head_dim).map(|i| f64::from(u8::from(i / head_dim == i % head_dim))).collect()
            }

            /// One batch entry and query head.
            struct Head<'a, const ABSOLUTE: bool> {
                case: &'a Case,
                kv_batch_head: usize,
                weights: Vec<Float>,
                /// g, which all maps of the registry have the same of on every axis.
                quadratic: Float,
                queries: Vec<Row>,
                keys: Vec<Row>,
                values: Vec<Float>,
                grad: Vec<Float>,
            }

            struct Row {
                scaled: Vec<Float>,
                projected: Vec<Float>,
                /// Projections as sums of absolute products.
                sizes: Vec<Float>,
                half_norm: Float,
                /// Features of an activation map, their slopes, and what rounding is measured in: once for all pairs.
                features: Vec<Feature>,
            }

            #[derive(Clone, Copy)]
            struct Feature {
                phi: Float,
                slope: Float,
                size: Float,
            }

            /// `value exp(log)` and what its derivatives are times `exp(log)`, by the projections of query and key
            /// and by half the squared norm of the key.
            #[derive(Clone, Copy)]
            struct Term {
                value: Float,
                /// The value, or what its rounding is measured in.
                counts: Float,
                log: Float,
                by_query: Float,
                by_key: Float,
                by_norm: Float,
            }

            impl<'a, const ABSOLUTE: bool> Head<'a, ABSOLUTE> {
                fn new(case: &'a Case, data: &Data, batch_head: usize, own: &Parameters<Vec<f64>>) -> Self {
                    let weights = cast(&own.query_directions);
                    let (h, hk) = case.heads;
                    let (l, s, d, e) = (case.q_len, case.kv_len, case.head_dim, case.value_dim);
                    let kv_batch_head = batch_head / h * hk + batch_head % h / (h / hk);
                    let rows = |x: &[f64], constants: &Option<Vec<f64>>| {
                        let constants = cast(constants.as_deref().unwrap_or_default());
                        let made = cast(x);
                        let made = made.chunks(d).map(|x| row(x, &weights, &constants));
                        made.map(|row| Row { features: features(case, &row), ..row }).collect()
                    };
                    Head {
                        case,
                        kv_batch_head,
                        queries: rows(&data.q[batch_head * l * d..][..l * d], &own.query_constants),
                        keys: rows(&data.k[kv_batch_head * s * d..][..s * d], &own.key_constants),
                        weights,
                        quadratic: own.key_quadratic.as_ref().map_or(1.0, |g| g[0] as Float),
                        values: cast(&data.v[kv_batch_head * s * e..][..s * e]),
                        grad: cast(&data.grad[batch_head * l * e..][..l * e]),
                    }
                }

                /// Adds to the answer; returns the gradient of the parameters.
                fn run(
                    &self,
                    case: &Case,
                    data: &Data,
                    batch_head: usize,
                    own: &Parameters<Vec<f64>>,
                    answer: &mut Answer,
                ) -> Parameters<Vec<f64>> {
                    let (l, s, d, e) = (case.q_len, case.kv_len, case.head_dim, case.value_dim);
                    let mut dq = vec![0.0 as Float; l * d];
                    let mut dk = vec![0.0 as Float; s * d];
                    let mut dv = vec![0.0 as Float; s * e];
                    let mut dweights = vec![0.0 as Float; self.weights.len()];
                    let mut dconstants = [(); 2].map(|()| vec![0.0 as Float; self.weights.len() / d]);
                    for i in 0..l {
                        let batch = batch_head / case.heads.0;
                        let seen: Vec<usize> = (0..s).filter(|&j| sees(case, &data.mask, batch, i, j)).collect();
                        let Some((total, scores, terms)) = self.scores(i, &seen) else { continue };
                        if total == 0.0 {
                            continue;
                        }
                        let weighted = |c: usize| -> Float {
                            seen.iter().zip(&scores).map(|(&j, p)| p * self.size(self.values[j * e + c])).sum()
                        };
                        let out: Vec<Float> = (0..e).map(|c| weighted(c) / total).collect();
                        let to = &mut answer[0][(batch_head * l + i) * e..][..e];
                        to.iter_mut().zip(&out).for_each(|(to, &x)| *to = f64::from(x));
                        let g = &self.grad[i * e..][..e];
                        let num_terms = self.queries[i].projected.len().max(1);
                        for ((&j, p), terms) in seen.iter().zip(&scores).zip(terms.chunks(num_terms)) {
                            (0..e).for_each(|c| dv[j * e + c] += p / total * self.size(g[c]));
                            // As linear attention must: the sum over values less the sum over outputs.
                            let (of_values, of_out) = (self.dot(g, &self.values[j * e..][..e]), self.dot(g, &out));
                            let dscore = if ABSOLUTE { of_values + of_out } else { of_values - of_out };
                            let [of_query, of_key] = &mut dconstants;
                            let to = [&mut dq[i * d..][..d], &mut dk[j * d..][..d], &mut dweights, of_query, of_key];
                            self.pull_back(i, j, terms, dscore / total, to);
                        }
                    }
                    let add = |to: &mut [f64], from: &[Float]| {
                        to.iter_mut().zip(from).for_each(|(to, &x)| *to += f64::from(x));
                    };
                    add(&mut answer[1][batch_head * l * d..], &dq);
                    add(&mut answer[2][self.kv_batch_head * s * d..], &dk);
                    add(&mut answer[3][self.kv_batch_head * s * e..], &dv);
                    let wide = |x: &[Float]| x.iter().map(|&x| f64::from(x)).collect::<Vec<f64>>();
                    Parameters {
                        query_constants: own.query_constants.as_ref().map(|_| wide(&dconstants[0])),
                        key_constants: own.key_constants.as_ref().map(|_| wide(&dconstants[1])),
                        ..Parameters::of_directions(wide(&dweights))
                    }
                }

                /// The denominator of a row, its scores, and its terms with their powers, those of one key after another; all are
                /// relative to the largest log.
                fn scores(&self, i: usize, seen: &[usize]) -> Option<(Float, Vec<Float>, Vec<(Term, Float)>)> {
                    let count = self.queries[i].projected.len();
                    let pairs = seen.iter().flat_map(|&j| (0..count).map(move |m| (j, m)));
                    let terms: Vec<Term> = pairs.map(|(j, m)| self.term(i, j, m)).collect();
                    let top = terms.iter().map(|t| t.log).reduce(Float::max)?;
                    let terms: Vec<_> = terms.into_iter().map(|t| (t, (t.log - top).exp())).collect();
                    let sum = |part: fn(&Term) -> Float| {
                        let score = |of_key: &[(Term, Float)]| of_key.iter().map(|(t, power)| part(t) * power).sum();
                        terms.chunks(count).map(score).collect::<Vec<Float>>()
                    };
                    let (total, scores) = (sum(|t| t.value).iter().sum::<Float>(), sum(|t| t.counts));
                    if ABSOLUTE && is_signed(self.case.map) {
                        // A denominator may be far smaller than its terms, so their rounding counts once more.
                        let spread = scores.iter().sum::<Float>() / total.abs();
                        return Some((total.abs() / (1.0 + spread), scores, terms));
                    }
                    Some((self.size(total), scores, terms))
                }

                fn size(&self, x: Float) -> Float {
                    if ABSOLUTE { x.abs() } else { x }
                }

                fn dot(&self, a: &[Float], b: &[Float]) -> Float {
                    a.iter().zip(b).map(|(a, b)| self.size(a * b)).sum()
                }

                fn pull_back(&self, i: usize, j: usize, terms: &[(Term, Float)], dscore: Float, to: [&mut [Float]; 5]) {
                    let [dq, dk, dweights, of_query, of_key] = to;
                    let d = self.case.head_dim;
                    let unit = (d as Float).powf(-0.25);
                    // Of one length, so that the compiler checks no index.
                    let (x, y) = (&self.queries[i].scaled[..d], &self.keys[j].scaled[..d]);
                    let (dq, dk) = (&mut dq[..d], &mut dk[..d]);
                    for (m, (t, power)) in terms.iter().enumerate() {
                        let weight = dscore * power;
                        of_query[m] += weight * self.size(t.by_query);
                        of_key[m] += weight * self.size(t.by_key);
                        let (weights, dweights) = (&self.weights[m * d..][..d], &mut dweights[m * d..][..d]);
                        for c in 0..d {
                            let w = weights[c];
                            dq[c] += unit * weight * self.size(t.by_query * w);
                            dk[c] += unit
                                * weight
                                * (self.size(t.by_key * w) + self.size(t.by_norm * self.quadratic * y[c]));
                            dweights[c] += weight * (self.size(t.by_query * x[c]) + self.size(t.by_key * y[c]));
                        }
                    }
                }

                fn term(&self, i: usize, j: usize, m: usize) -> Term {
                    let (query, key) = (&self.queries[i], &self.keys[j]);
                    let (u, w, norm) = (query.projected[m], key.projected[m], self.quadratic * key.half_norm);
                    let (value, log, by_query, by_key, by_norm) = match self.case.map.family() {
                        Family::Exponential => (1.0, u + w - norm, 1.0, 1.0, -1.0),
                        Family::Activation(_) => {
                            let (of_query, of_key) = (query.features[m], key.features[m]);
                            let (by_query, by_key) = (of_query.slope * of_key.phi, of_query.phi * of_key.slope);
                            (of_query.phi * of_key.phi, 0.0, by_query, by_key, 0.0)
                        }
                        Family::Trigonometric => {
                            let (sine, cosine) = (u - w).sin_cos();
                            (cosine, norm, -sine, sine, cosine)
                        }
                    };
                    if ABSOLUTE && self.is_trigonometric() {
                        // What is rounded is cos cos and sin sin, each up to 1 where their sum may vanish.
                        return Term { value, counts: 1.0, log, by_query: 1.0, by_key: 1.0, by_norm: 1.0 };
                    }
                    if ABSOLUTE
                        && matches!(self.case.map.family(), Family::Activation(_))
                        && self.case.map != FeatureMap::Elu1
                    {
                        let (of_query, of_key) = (query.features[m], key.features[m]);
                        let (by_query, by_key) = (of_query.slope * of_key.size, of_key.slope * of_query.size);
                        return Term { value, counts: of_query.size * of_key.size, log, by_query, by_key, by_norm };
                    }
                    Term { value, counts: self.size(value), log, by_query, by_key, by_norm }
                }

                fn is_trigonometric(&self) -> bool {
                    self.case.map.family() == Family::Trigonometric
                }
            }

            /// Features of a row.
            fn features(case: &Case, row: &Row) -> Vec<Feature> {
                let Family::Activation(activation) = case.map.family() else { return Vec::new() };
                let value = |x: Float| case.epsilon as Float + phi(activation, x);
                let of_projection = |(&x, &size): (&Float, &Float)| Feature {
                    phi: value(x),
                    slope: slope(activation, x),
                    size: match activation {
                        // A feature may be far smaller than the products that its projection is the sum of.
                        Activation::Relu => value(if x > 0.0 { size } else { x }),
                        // A feature moves by its slope times what its projection is rounded by.
                        _ => value(x).abs() + slope(activation, x).abs() * size,
                    },
                };
                row.projected.iter().zip(&row.sizes).map(of_projection).collect()
            }

            fn phi(activation: Activation, x: Float) -> Float {
                match activation {
                    Activation::Relu => x.max(0.0),
                    Activation::Elu1 => x.max(0.0) + x.min(0.0).exp(),
                    Activation::Identity => x,
                    Activation::Abs => x.abs(),
                    Activation::Relu2 => x.max(0.0).powi(2),
                    Activation::Square => x.powi(2),
                    Activation::Sigmoid => sigmoid(x),
                    Activation::Tanh => x.tanh(),
                    Activation::Gelu => 0.5 * x * (1.0 + gelu_argument(x).tanh()),
                    Activation::Cos => x.cos(),
                }
            }

            fn slope(activation: Activation, x: Float) -> Float {
                match activation {
                    Activation::Relu => Float::from(u8::from(x > 0.0)),
                    Activation::Elu1 => {
                        if x > 0.0 {
                            1.0
                        } else {
                            x.exp()
                        }
                    }
                    Activation::Identity => 1.0,
                    Activation::Abs if x == 0.0 => 0.0,
                    Activation::Abs => x.signum(),
                    Activation::Relu2 => 2.0 * x.max(0.0),
                    Activation::Square => 2.0 * x,
                    Activation::Sigmoid => sigmoid(x) * (1.0 - sigmoid(x)),
                    Activation::Tanh => x.cosh().powi(-2),
                    Activation::Gelu => {
                        let t = gelu_argument(x).tanh();
                        let rate = (2.0 / PI as Float).sqrt() * (1.0 + 3.0 * 0.044715 * x * x);
                        0.5 * (1.0 + t) + 0.5 * x * (1.0 - t * t) * rate
                    }
                    Activation::Cos => -x.sin(),
                }
            }

            fn sigmoid(x: Float) -> Float {
                1.0 / (1.0 + (-x).exp())
            }

            fn gelu_argument(x: Float) -> Float {
                (2.0 / PI as Float).sqrt() * (x + 0.044715 * x.powi(3))
            }

            fn row(x: &[Float], weights: &[Float], constants: &[Float]) -> Row {
                let unit = (x.len() as Float).powf(-0.25);
                let scaled: Vec<Float> = x.iter().map(|x| x * unit).collect();
                let mut projected: Vec<Float> = weights.chunks(x.len()).map(|w| dot(w, &scaled)).collect();
                projected.iter_mut().zip(constants).for_each(|(u, c)| *u += c);
                let size = |w: &[Float]| w.iter().zip(&scaled).map(|(w, x)| (w * x).abs()).sum();
                let sizes = weights.chunks(x.len()).map(size).collect();
                let half_norm = 0.5 * dot(&scaled, &scaled);
                Row { scaled, projected, sizes, half_norm, features: Vec::new() }
            }

            fn dot(a: &[Float], b: &[Float]) -> Float {
                a.iter().zip(b).map(|(a, b)| a * b).sum()
            }
        }
    };
}

pairs!(narrow, f32);
pairs!(wide, f64);
