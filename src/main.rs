use std::process::ExitCode;
fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().collect();
    if args[1] == "agent" {
        return locum::agent::run(args.iter().any(|a| a == "--cgroup")).into();
    }
    let text = std::fs::read_to_string(&args[2]).unwrap();
    let config = serde_json::from_str(&text).unwrap();
    locum::keeper::run(&config, Default::default()).into()
}
