//! Compiles every `.proto` of `proto/` to Rust, without protoc, and lists the fields marked secret.
//!
//! Writes to OUT_DIR: one `<package>.rs` per protobuf package, and `secret_fields.rs`.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::{env, error::Error, fs};

use protox::Compiler;
use protox::prost_reflect::{DescriptorPool, ExtensionDescriptor, MessageDescriptor, Value};

/// The field option, declared in `csi.proto`, that marks a field's value as sensitive.
const SECRET_OPTION: &str = "csi.v1.csi_secret";

fn main() -> Result<(), Box<dyn Error>> {
    let folder = PathBuf::from(env::var("CARGO_MANIFEST_DIR")?).join("proto");
    let out_dir = PathBuf::from(env::var("OUT_DIR")?);
    println!("cargo::rerun-if-changed={}", folder.display());

    let files = proto_files(&folder)?;
    let mut compiler = Compiler::new([&folder])?;
    compiler.include_imports(true).include_source_info(true).open_files(&files)?;

    fs::write(out_dir.join("secret_fields.rs"), render_secret_fields(&compiler.descriptor_pool())?)?;
    tonic_prost_build::configure()
        .message_attribute(".weir.operator.v1", "#[derive(serde::Serialize)]")
        .message_attribute(".weir.operator.v1", "#[serde(rename_all = \"camelCase\")]")
        .compile_fds(compiler.file_descriptor_set())?;
    Ok(())
}

/// The `.proto` files of `folder`, sorted so that the output does not depend on directory order.
fn proto_files(folder: &Path) -> Result<Vec<PathBuf>, Box<dyn Error>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "proto") {
            files.push(path);
        }
    }
    if files.is_empty() {
        return Err(format!("no .proto file in {}", folder.display()).into());
    }
    files.sort();
    Ok(files)
}

/// Rust source of a slice of (full message name, field name), sorted.
fn render_secret_fields(pool: &DescriptorPool) -> Result<String, Box<dyn Error>> {
    let option = pool
        .get_extension_by_name(SECRET_OPTION)
        .ok_or_else(|| format!("option {SECRET_OPTION} is not declared by any .proto"))?;
    let mut rows: Vec<_> = pool.all_messages().flat_map(|message| secret_fields(&message, &option)).collect();
    rows.sort();
    let mut text = String::from("&[\n");
    for (message, field) in rows {
        writeln!(text, "    ({message:?}, {field:?}),")?;
    }
    text.push(']');
    Ok(text)
}

fn secret_fields(message: &MessageDescriptor, option: &ExtensionDescriptor) -> Vec<(String, String)> {
    message
        .fields()
        .filter(|field| *field.options().get_extension(option) == Value::Bool(true))
        .map(|field| (message.full_name().to_owned(), field.name().to_owned()))
        .collect()
}
