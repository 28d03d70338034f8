//! Another crate of a program may turn on the feature `arbitrary_precision` of serde_json, which is then on for all: numbers
//! that are no integers are read in another way. The tests of tokens are run with it.

use std::process::Command;

#[test]
fn fractions_are_numbers_whatever_features_serde_json_has() {
    let output = Command::new(env!("CARGO"))
        .args(["test", "--quiet", "--offline", "--package", "token"])
        .args(["--features", "serde_json/arbitrary_precision"])
        .args(["--test", "numbers", "--test", "verify"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    let text = [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned());
    assert!(output.status.success(), "{}", text.join("\n"));
}
