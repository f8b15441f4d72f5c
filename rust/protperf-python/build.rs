//! A checkout that turned the link to the app into a text file would build a wheel without the app, silently.

use std::path::Path;

fn main() {
    let app = Path::new("../../python/protperf/lm/__init__.py");
    assert!(
        app.is_file(),
        "python/protperf/lm must be a symbolic link to apps/lm; check the repository out with links (git config core.symlinks true)"
    );
    println!("cargo::rerun-if-changed=../../python/protperf/lm/__init__.py");
    println!("cargo::rustc-env=PROTPERF_PROFILE={}", std::env::var("PROFILE").unwrap_or_default());
}
