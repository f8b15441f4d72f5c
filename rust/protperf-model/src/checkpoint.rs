//! A step of a run on disk, verified before any number of it is used. `apps/lm/storage/checkpoint.py` says what a step is.
//!
//! Whoever made a checkpoint can also have sealed its manifest, so no value is trusted just because the digests match.
//! What the manifest says about the training is for those who continue one: only sizes, digests and the configuration
//! count here.

use crate::config::Config;
use crate::fault::{Fault, Result};
use crate::json::{Json, Table, to_text};
use crate::tensor_file::TensorFile;
use protperf_core::Error;
use protperf_io::{MappedFile, PlainFile};
use sha2::{Digest, Sha256};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

const MANIFEST: &str = "manifest.json";
const CONFIG: &str = "config.json";
const MODEL: &str = "model.safetensors";
const FILES: [&str; 3] = [CONFIG, MODEL, "trainer.safetensors"];
/// Largest JSON file: its parsed values can take thirty times as much memory.
const MAX_JSON_BYTES: usize = 1 << 18;
/// Bytes between two looks at the cancel flag: about a millisecond of hashing.
const HASHED_AT_ONCE: usize = 1 << 20;

/// A verified step: its configuration and the tensors of its network.
pub struct Checkpoint {
    /// The configuration.
    pub config: Config,
    /// The tensors that it implies, none missing and none more.
    pub tensors: TensorFile,
}

impl Checkpoint {
    /// Opens a step: its manifest as sealed, every file as the manifest says, the tensors as the configuration needs.
    ///
    /// The state of the optimizer is not read: only its size is compared.
    ///
    /// # Errors
    /// [`Fault::File`] naming the file; `OutOfMemory`; `Interrupted`.
    pub fn open(step: &Path, cancel: &AtomicBool) -> Result<Self> {
        let manifest = Manifest::read(step)?;
        let config_path = step.join(CONFIG);
        let text = read_json(&config_path)?;
        manifest.check_size(step, CONFIG, text.len() as u64)?;
        manifest.check_digest(step, CONFIG, &text, cancel)?;
        let table = Json::parse_table(&text).map_err(|what| Fault::broken(&config_path, what))?;
        let config = Config::from_table(&table).map_err(|what| Fault::broken(&config_path, what))?;
        for name in FILES {
            manifest.check_size(step, name, open_plain(&step.join(name))?.len())?;
        }
        let (path, contents) = (step.join(MODEL), map_plain(&step.join(MODEL))?);
        manifest.check_size(step, MODEL, contents.bytes().len() as u64)?;
        manifest.check_digest(step, MODEL, contents.bytes(), cancel)?;
        let tensors = TensorFile::new(&path, contents)?;
        tensors.expect(&config.tensors())?;
        Ok(Checkpoint { config, tensors })
    }
}

/// Size and SHA-256 of each file of a step.
struct Manifest {
    files: [(i64, String); FILES.len()],
}

impl Manifest {
    fn read(step: &Path) -> Result<Self> {
        let path = step.join(MANIFEST);
        let broken = |what: &str| Fault::broken(&path, what);
        let table = unsealed(&read_json(&path)?).map_err(|what| broken(&what))?;
        check_number(step, &table).map_err(|what| broken(&what))?;
        let files = match table.get("files") {
            Some(Json::Table(files)) if files.len() == FILES.len() => files,
            _ => return Err(broken("does not list the files of a step")),
        };
        let mut entries = FILES.map(|_| (0, String::new()));
        for (entry, name) in entries.iter_mut().zip(FILES) {
            let Some(found) = files.get(name) else { return Err(broken("does not list the files of a step")) };
            *entry = facts(found).ok_or_else(|| broken(&format!("has no size and SHA-256 of {name}")))?;
        }
        Ok(Manifest { files: entries })
    }

    fn entry(&self, name: &str) -> Option<&(i64, String)> {
        FILES.iter().zip(&self.files).find(|(file, _)| **file == name).map(|(_, entry)| entry)
    }

    fn check_size(&self, step: &Path, name: &str, found: u64) -> Result<()> {
        match self.entry(name) {
            Some((size, _)) if u64::try_from(*size) == Ok(found) => Ok(()),
            Some((size, _)) => {
                Err(Fault::broken(&step.join(name), format!("has {found} bytes, the manifest says {size}")))
            }
            None => Err(Fault::broken(&step.join(MANIFEST), "does not list the files of a step")),
        }
    }

    fn check_digest(&self, step: &Path, name: &str, data: &[u8], cancel: &AtomicBool) -> Result<()> {
        let found = sha256(data, cancel)?;
        if self.entry(name).is_some_and(|(_, digest)| *digest == found) {
            return Ok(());
        }
        Err(Fault::broken(&step.join(name), "does not have the contents that were saved (SHA-256 differs)"))
    }
}

/// The number of a step is that of its directory, where that is named like one.
fn check_number(step: &Path, table: &Table) -> Result<(), String> {
    let Some(Json::Int(number @ 0..)) = table.get("step") else { return Err("has no step number".into()) };
    let name = step.file_name().map(|name| name.to_string_lossy()).unwrap_or_default();
    match name.strip_prefix("step-").and_then(|named| named.parse::<i64>().ok()) {
        Some(named) if named != *number => Err(format!("is of step {number}")),
        _ => Ok(()),
    }
}

fn facts(entry: &Json) -> Option<(i64, String)> {
    let Json::Table(entry) = entry else { return None };
    match (entry.len(), entry.get("size"), entry.get("sha256")) {
        (2, Some(Json::Int(size)), Some(Json::Text(digest))) => Some((*size, digest.clone())),
        _ => None,
    }
}

/// The table of a sealed text, without the seal: `sha256` is the SHA-256 of the text without it.
fn unsealed(text: &[u8]) -> Result<Table, String> {
    let mut table = Json::parse_table(text)?;
    table.remove("sha256");
    let digest = hex(&Sha256::digest(to_text(&table)));
    table.insert("sha256".into(), Json::Text(digest));
    // Compared as bytes: a change that keeps the values, such as 1e-05 to 1E-05, counts as a change.
    if to_text(&table).as_bytes() != text {
        return Err("does not have the contents that were saved (SHA-256 differs)".into());
    }
    table.remove("sha256");
    Ok(table)
}

fn sha256(data: &[u8], cancel: &AtomicBool) -> Result<String> {
    let mut hasher = Sha256::new();
    for part in data.chunks(HASHED_AT_ONCE) {
        if cancel.load(Ordering::Relaxed) {
            return Err(Error::Interrupted.into());
        }
        hasher.update(part);
    }
    Ok(hex(&hasher.finalize()))
}

fn hex(digest: &[u8]) -> String {
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn open_plain(path: &Path) -> Result<PlainFile> {
    PlainFile::open(path).map_err(|fault| Fault::unopened(path, fault))
}

fn map_plain(path: &Path) -> Result<MappedFile> {
    open_plain(path)?.map().map_err(|error| Fault::system(path, &error))
}

fn read_json(path: &Path) -> Result<Vec<u8>> {
    let read = open_plain(path)?.read(MAX_JSON_BYTES).map_err(|error| Fault::system(path, &error))?;
    read.ok_or_else(|| Fault::broken(path, format!("is larger than {MAX_JSON_BYTES} bytes")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_text_that_was_sealed_is_accepted() {
        // plain_file.seal({"a": 1e-05, "step": 3}) of Python.
        let digest = hex(&Sha256::digest("{\n \"a\": 1e-05,\n \"step\": 3\n}\n"));
        let sealed = format!("{{\n \"a\": 1e-05,\n \"sha256\": \"{digest}\",\n \"step\": 3\n}}\n");
        assert_eq!(unsealed(sealed.as_bytes()).unwrap().len(), 2);
        for changed in [sealed.replace("1e-05", "1E-05"), sealed.replace('3', "4"), sealed.replace("\n ", "\n  ")] {
            assert_ne!(changed, sealed);
            assert!(unsealed(changed.as_bytes()).unwrap_err().contains("SHA-256 differs"));
        }
    }
}
