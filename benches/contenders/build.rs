//! The code of `chain.proto`, without `protoc`.

fn main() {
    let descriptors = protox::compile(["chain.proto"], ["."]).expect("the proto compiles");
    tonic_prost_build::configure()
        .message_attribute(".", "#[derive(serde::Serialize)]")
        .compile_fds(descriptors)
        .expect("the code is written");
    println!("cargo::rerun-if-changed=chain.proto");
}
