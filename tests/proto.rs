//! The generated code of `proto/` is what its source makes: a build needs neither `protoc` nor a build script.
//!
//! `UPDATE_PROTO=yes cargo test --test proto` writes it.

use std::path::Path;

use prost::Message as _;

#[test]
fn the_generated_code_is_what_the_source_makes() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("proto");
    let kept = root.join("httpserver/v1/generated");
    let made = Path::new(env!("CARGO_TARGET_TMPDIR")).join("proto");
    std::fs::create_dir_all(&made).unwrap();
    let descriptors = protox::compile(["httpserver/v1/chain.proto"], [&root]).unwrap();
    std::fs::write(made.join("chain.binpb"), descriptors.encode_to_vec()).unwrap();
    tonic_prost_build::configure().build_client(false).bytes(".").out_dir(&made).compile_fds(descriptors).unwrap();
    for file in ["chain.binpb", "httpserver.v1.rs"] {
        if std::env::var_os("UPDATE_PROTO").is_some() {
            std::fs::copy(made.join(file), kept.join(file)).unwrap();
        }
        let is_same = std::fs::read(made.join(file)).unwrap() == std::fs::read(kept.join(file)).unwrap();
        assert!(is_same, "{file} is not what proto/ makes: UPDATE_PROTO=yes cargo test --test proto");
    }
}
