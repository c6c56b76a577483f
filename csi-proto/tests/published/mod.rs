//! The specification as its authors publish it: a Go module, fetched by the `go` command.
//!
//! The module's hash is pinned; `go` verifies what it downloads or has cached against it.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::{fs, io};

use protox::prost_reflect::{DescriptorError, DescriptorPool, FileDescriptor};

/// The release this crate speaks.
pub(crate) const MODULE: &str = "github.com/container-storage-interface/spec@v1.12.0";
/// Hash of that release as the Go checksum database (sum.golang.org) records it.
pub(crate) const MODULE_SUM: &str = "h1:zrFOEqpR5AghNaaDG4qyedwPBqU2fU0dWjLQMP/azK0=";

/// Why the published specification could not be had.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FetchError {
    /// The command could not be started.
    #[error("cannot run `{program}`: {source}; these tests need Go, see https://go.dev/doc/install")]
    NoGo { program: String, source: io::Error },
    /// The command ran and failed.
    #[error(
        "`go mod download {MODULE}` failed ({status}); it needs the module cache or a Go proxy: {output}"
    )]
    Download { status: std::process::ExitStatus, output: String },
    /// The command succeeded but did not say what it must.
    #[error("`go mod download -json` answered without a usable {what}: {output}")]
    Answer { what: &'static str, output: String },
    /// Another content than the one this crate was written against.
    #[error("{MODULE} has hash {found}, expected {MODULE_SUM}")]
    Hash { found: String },
    /// A file of the module could not be read.
    #[error("cannot read {path}: {source}")]
    Read { path: PathBuf, source: io::Error },
    /// The generated Go code does not hold a descriptor where it should.
    #[error("{path}: {what}")]
    GoCode { path: PathBuf, what: String },
    /// The descriptor in the generated Go code does not load.
    #[error("descriptor in {path} does not load: {source}")]
    Descriptor { path: PathBuf, source: DescriptorError },
}

/// Folder of the module, unpacked; `program` is the Go command.
pub(crate) fn fetch_module(program: &str) -> Result<PathBuf, FetchError> {
    let Output { status, stdout, stderr } = Command::new(program)
        .args(["mod", "download", "-json", MODULE])
        .current_dir(env!("CARGO_TARGET_TMPDIR"))
        .env("GOWORK", "off")
        .output()
        .map_err(|source| FetchError::NoGo { program: program.to_owned(), source })?;
    let output = String::from_utf8_lossy(&stdout).into_owned();
    if !status.success() {
        let output = format!("{output}{}", String::from_utf8_lossy(&stderr));
        return Err(FetchError::Download { status, output });
    }
    let answer = |what| FetchError::Answer { what, output: output.clone() };
    let facts: serde_json::Value = serde_json::from_str(&output).map_err(|_| answer("JSON text"))?;
    let sum = facts["Sum"].as_str().ok_or_else(|| answer("Sum"))?;
    if sum != MODULE_SUM {
        return Err(FetchError::Hash { found: sum.to_owned() });
    }
    facts["Dir"].as_str().map(PathBuf::from).ok_or_else(|| answer("Dir"))
}

/// Text of the module's `csi.proto`.
pub(crate) fn proto_text(module: &Path) -> Result<String, FetchError> {
    read(&module.join("csi.proto"))
}

/// The descriptor that protoc made of it and that the module's Go code carries.
///
/// It owes nothing to the compiler this crate uses, so it shows errors of that compiler too.
pub(crate) fn go_descriptor(module: &Path) -> Result<FileDescriptor, FetchError> {
    let path = module.join("lib/go/csi/csi.pb.go");
    let bytes = raw_descriptor(&read(&path)?)
        .map_err(|what| FetchError::GoCode { path: path.clone(), what: what.to_owned() })?;
    let mut pool = DescriptorPool::global();
    pool.decode_file_descriptor_proto(bytes.as_slice())
        .map_err(|source| FetchError::Descriptor { path: path.clone(), source })?;
    let file = pool.files().find(|file| file.package_name() == "csi.v1");
    file.ok_or_else(|| FetchError::GoCode { path, what: "the descriptor is not of package csi.v1".into() })
}

/// Bytes of the Go variable `file_csi_proto_rawDesc = []byte{0x0a, ...}`.
fn raw_descriptor(code: &str) -> Result<Vec<u8>, &'static str> {
    let (_, rest) = code.split_once("file_csi_proto_rawDesc = []byte{").ok_or("no raw descriptor")?;
    let (list, _) = rest.split_once('}').ok_or("the raw descriptor has no end")?;
    list.split(',')
        .map(str::trim)
        .filter(|item| !item.is_empty())
        .map(|item| item.strip_prefix("0x").and_then(|hex| u8::from_str_radix(hex, 16).ok()))
        .map(|byte| byte.ok_or("an item of the raw descriptor is no byte"))
        .collect()
}

fn read(path: &Path) -> Result<String, FetchError> {
    fs::read_to_string(path).map_err(|source| FetchError::Read { path: path.to_owned(), source })
}
