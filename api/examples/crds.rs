//! Writes the definitions into the chart, and their reference and that of parameters into docs.

use std::path::Path;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../charts/weir/crds");
    std::fs::create_dir_all(&dir)?;
    for (name, text) in api::crds::files()? {
        std::fs::write(dir.join(&name), text)?;
        println!("{name}");
    }
    let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs");
    std::fs::write(docs.join("crds.md"), api::reference::page()?)?;
    let page = docs.join("parameters.md");
    std::fs::write(&page, api::parameters::fill(&std::fs::read_to_string(&page)?)?)?;
    Ok(())
}
