//! The configuration of a network, with the checks of `apps/lm/model/config.py`.

use crate::json::{Json, Table, shortened};
use crate::weights::{Attention, BlockShape};
use protperf_core::FeatureMap;
use protperf_core::projection::Sampler;

/// What a network was trained to predict.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Objective {
    /// Hidden residues from all others.
    Masked,
    /// The next residue.
    Causal,
    /// Both; the embedding of the mode says which.
    Both,
}

/// What decides the shapes of a network and what it computes.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Blocks.
    pub num_layers: usize,
    /// The widths of each block.
    pub shape: BlockShape,
    /// M, random features per head; also where attention is exact.
    pub num_features: usize,
    /// How heads attend.
    pub attention: Attention,
    /// What was trained.
    pub objective: Objective,
}

/// Keys with the least and the most that each may be.
const SIZES: [(&str, i64, i64); 6] = [
    ("num_layers", 1, 256),
    ("model_dim", 1, 16384),
    ("num_heads", 1, 256),
    ("head_dim", 1, 1024),
    ("ffn_dim", 1, 65536),
    ("num_features", 1, 4096),
];
const OBJECTIVES: [(&str, Objective); 3] =
    [("masked", Objective::Masked), ("causal", Objective::Causal), ("both", Objective::Both)];
/// How training drew its weights and hid activations: checked, and of no consequence here.
const OF_TRAINING: [&str; 5] = ["dropout", "seed", "sampler", "norm", "directions"];
/// Characters of a value that an error shows.
const MAX_SHOWN: usize = 100;

impl Config {
    /// A configuration from the table of a file.
    ///
    /// # Errors
    /// A key that is unknown or missing, or a value out of range, in one short line.
    pub fn from_table(table: &Table) -> Result<Self, String> {
        let is_known = |key: &str| SIZES.iter().any(|row| row.0 == key) || OF_TRAINING.contains(&key);
        if let Some(key) =
            table.keys().find(|key| !is_known(key) && !["attention", "objective"].contains(&key.as_str()))
        {
            return Err(format!("unknown key '{}'", shortened(key, MAX_SHOWN)));
        }
        let mut sizes = [0; SIZES.len()];
        for (size, (key, least, most)) in sizes.iter_mut().zip(SIZES) {
            *size = integer(table, key, least, most)? as usize;
        }
        let [num_layers, model_dim, num_heads, head_dim, ffn_dim, num_features] = sizes;
        if head_dim % 2 != 0 {
            return Err(format!("head_dim is {head_dim}; rotary positions need an even number"));
        }
        let attention = attention(table, num_features)?;
        let objective = choice(table, "objective", &OBJECTIVES, Objective::Both)?;
        check_training(table, objective)?;
        let shape = BlockShape { model_dim, num_heads, head_dim, ffn_dim };
        Ok(Config { num_layers, shape, num_features, attention, objective })
    }

    /// F, the width of phi(x) of a head; 0 with exact attention.
    pub fn feature_dim(&self) -> usize {
        match self.attention {
            Attention::Favor { map, num_features } => map.feature_dim(num_features),
            Attention::Exact => 0,
        }
    }

    /// Multiply-adds that one token costs, roughly, where `before` others of its sequence are looked at.
    pub fn work_per_token(&self, before: f64) -> f64 {
        let (c, inner) = (self.shape.model_dim as f64, self.shape.inner() as f64);
        let attention = match self.attention {
            Attention::Favor { .. } => 4.0 * inner * self.feature_dim() as f64,
            Attention::Exact => 2.0 * inner * before,
        };
        self.num_layers as f64 * (4.0 * c * inner + 3.0 * c * self.shape.ffn_dim as f64 + attention)
    }

    /// Multiply-adds that some tokens of a sequence cost, roughly, of which `before` others were read earlier.
    pub fn work(&self, len: usize, before: u64) -> f64 {
        len as f64 * self.work_per_token(before as f64 + len as f64)
    }

    /// The tensors of a network file: name and shape of each, all of them float32.
    pub fn tensors(&self) -> Vec<(String, Vec<usize>)> {
        let BlockShape { model_dim: c, num_heads: h, head_dim: d, ffn_dim: f } = self.shape;
        let inner = self.shape.inner();
        let mut tensors = vec![
            ("embedding.weight".into(), vec![protperf_core::alphabet::VOCABULARY_SIZE, c]),
            ("mode.weight".into(), vec![2, c]),
            ("norm.weight".into(), vec![c]),
        ];
        for layer in 0..self.num_layers {
            let mut add = |name: &str, shape: &[usize]| tensors.push((block_tensor(layer, name), shape.to_vec()));
            add("attention_norm.weight", &[c]);
            add("attention.qkv.weight", &[3 * inner, c]);
            add("attention.log_temperature", &[h]);
            if self.attention != Attention::Exact {
                add("attention.omega", &[h, self.num_features, d]);
            }
            add("attention.out.weight", &[c, inner]);
            add("ffn_norm.weight", &[c]);
            add("gate_up.weight", &[2 * f, c]);
            add("down.weight", &[c, f]);
        }
        tensors
    }
}

/// The name of a tensor of a block in a network file.
pub(crate) fn block_tensor(layer: usize, name: &str) -> String {
    format!("blocks.{layer}.{name}")
}

fn attention(table: &Table, num_features: usize) -> Result<Attention, String> {
    let favor = |map| Attention::Favor { map, num_features };
    // `softmax` is another name of the map that estimates it.
    let mut known = vec![("softmax", favor(FeatureMap::Positive)), ("exact", Attention::Exact)];
    known.extend(FeatureMap::ALL.map(|map| (map.name(), favor(map))));
    choice(table, "attention", &known, favor(FeatureMap::Relu))
}

fn check_training(table: &Table, objective: Objective) -> Result<(), String> {
    match table.get("dropout") {
        None => {}
        Some(Json::Int(0)) => {}
        Some(Json::Float(p)) if (0.0..1.0).contains(p) => {}
        Some(other) => return Err(refused("dropout", other, "it must be a number from 0 to less than 1")),
    }
    if table.contains_key("seed") {
        integer(table, "seed", 0, i64::MAX)?;
    }
    choice(table, "sampler", &Sampler::ALL.map(|sampler| (sampler.name(), ())), ())?;
    choice(table, "norm", &[("chi", ()), ("sqrt_dim", ())], ())?;
    // A backward reading is a sequence of tokens like any other; who scores both directions asks for both.
    let both = choice(table, "directions", &[("forward", false), ("both", true)], false)?;
    if both && objective == Objective::Masked {
        return Err("directions is both, but objective is masked, which sees both sides of a residue".into());
    }
    Ok(())
}

fn integer(table: &Table, key: &str, least: i64, most: i64) -> Result<i64, String> {
    match table.get(key) {
        None => Err(format!("key '{key}' is missing")),
        Some(Json::Int(value)) if (least..=most).contains(value) => Ok(*value),
        Some(other) => Err(refused(key, other, &format!("it must be a whole number from {least} to {most}"))),
    }
}

fn choice<C: Copy>(table: &Table, key: &str, known: &[(&str, C)], default: C) -> Result<C, String> {
    let Some(value) = table.get(key) else { return Ok(default) };
    let found = known.iter().find(|(name, _)| matches!(value, Json::Text(text) if text == name));
    found.map(|(_, choice)| *choice).ok_or_else(|| {
        let names: Vec<_> = known.iter().map(|(name, _)| *name).collect();
        refused(key, value, &format!("choose one of {}", names.join(", ")))
    })
}

fn refused(key: &str, value: &Json, remedy: &str) -> String {
    format!("{key} is {}; {remedy}", value.shown())
}

#[cfg(test)]
mod tests {
    use super::*;

    const NANO: &str = r#"{"num_layers": 4, "model_dim": 128, "num_heads": 4, "head_dim": 32, "ffn_dim": 384,
        "num_features": 64, "attention": "softmax", "objective": "causal", "dropout": 0, "seed": 42,
        "sampler": "iid", "norm": "chi"}"#;

    fn changed(from: &str, to: &str) -> Result<Config, String> {
        assert!(NANO.contains(from), "{from}");
        Config::from_table(&Json::parse_table(NANO.replace(from, to).as_bytes()).unwrap())
    }

    #[test]
    fn a_good_table_is_read() {
        let config = changed("softmax", "softmax").unwrap();
        assert_eq!(config.attention, Attention::Favor { map: FeatureMap::Positive, num_features: 64 });
        assert_eq!((config.objective, config.shape.inner(), config.feature_dim()), (Objective::Causal, 128, 64));
        let exact = changed("softmax", "exact").unwrap();
        assert_eq!(exact.tensors().len() + 4, config.tensors().len());
    }

    #[test]
    fn both_directions_are_causal() {
        let both = "\"norm\": \"chi\", \"directions\": \"both\"";
        assert!(changed("\"norm\": \"chi\"", both).is_ok());
        let masked = NANO.replace("\"norm\": \"chi\"", both).replace("causal", "masked");
        let fault = Config::from_table(&Json::parse_table(masked.as_bytes()).unwrap()).unwrap_err();
        assert!(fault.contains("directions"), "{fault}");
    }

    #[test]
    fn defaults_are_those_of_python() {
        let sizes =
            r#"{"num_layers": 1, "model_dim": 2, "num_heads": 1, "head_dim": 2, "ffn_dim": 1, "num_features": 3}"#;
        let config = Config::from_table(&Json::parse_table(sizes.as_bytes()).unwrap()).unwrap();
        assert_eq!(config.attention, Attention::Favor { map: FeatureMap::Relu, num_features: 3 });
        assert_eq!(config.objective, Objective::Both);
    }

    #[test]
    fn values_out_of_range_are_refused_by_name() {
        for (from, to, key) in [
            ("\"num_layers\": 4", "\"num_layers\": 0", "num_layers"),
            ("\"num_layers\": 4", "\"num_layers\": true", "num_layers"),
            ("\"model_dim\": 128", "\"model_dim\": 128.0", "model_dim"),
            ("\"head_dim\": 32", "\"head_dim\": 31", "head_dim"),
            ("\"head_dim\": 32, ", "", "head_dim"),
            ("\"ffn_dim\": 384", "\"ffn_dim\": 1000000000000", "ffn_dim"),
            ("\"softmax\"", "[\"relu\"]", "attention"),
            ("\"causal\"", "\"next\"", "objective"),
            ("\"dropout\": 0", "\"dropout\": 1.0", "dropout"),
            ("\"seed\": 42", "\"seed\": -1", "seed"),
            ("\"iid\"", "\"sobol\"", "sampler"),
            ("\"norm\"", "\"__class__\"", "__class__"),
            ("\"norm\"", "\"directions\"", "directions"),
        ] {
            let fault = changed(from, to).unwrap_err();
            assert!(fault.contains(key) && fault.len() < 200, "{to}: {fault}");
        }
    }
}
