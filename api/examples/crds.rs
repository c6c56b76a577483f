//! Writes the definitions into the chart, and their reference into docs.

use std::path::Path;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../charts/weir/crds");
    std::fs::create_dir_all(&dir)?;
    for (name, text) in api::crds::files()? {
        std::fs::write(dir.join(&name), text)?;
        println!("{name}");
    }
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/crds.md");
    std::fs::write(page, api::reference::page()?)?;
    Ok(())
}
