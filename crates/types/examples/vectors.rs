//! Writes the test vectors of docs/wire.md: `cargo run -p twinbft-types --example vectors`.
//!
//! Needed only when the contract changes, which every client in another language will notice.

#[path = "../tests/vectors/make.rs"]
mod make;

fn main() -> std::io::Result<()> {
    let directory = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("vectors");
    std::fs::create_dir_all(&directory)?;
    for (name, value) in make::files() {
        let text = serde_json::to_string_pretty(&value).expect("plain JSON");
        std::fs::write(directory.join(name), text + "\n")?;
        println!("{}", directory.join(name).display());
    }
    Ok(())
}
