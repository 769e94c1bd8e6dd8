//! Hostile bytes and hostile histories: every decoder of the product, a node in any state, and the sealed message against a second
//! implementation. See docs/design/security.md.

mod driver;
mod mutate;
mod rng;
mod targets;
mod world;

use std::{process::ExitCode, time::Duration};

use crate::{
    driver::{Length, to_hex},
    targets::TARGETS,
};

const USAGE: &str = "\
usage: fuzz [--target NAME] [--seconds N | --executions N] [--seed S] [--save] [--input HEX]

  --target NAME    only this one
  --seconds N      mutate each target for so long, after its corpus was replayed; 0 only replays (default 5)
  --executions N   mutate each target so often
  --seed S         another run (default 1)
  --save           inputs that went new ways become the corpus
  --input HEX      executes this one input of one target, and shows its panic
";

struct Arguments {
    target: Option<String>,
    length: Length,
    seed: u64,
    save: bool,
    input: Option<Vec<u8>>,
}

fn parse(words: &[String]) -> Result<Arguments, String> {
    let mut arguments = Arguments {
        target: None,
        length: Length::Time(Duration::from_secs(5)),
        seed: 1,
        save: false,
        input: None,
    };
    let mut words = words.iter();
    while let Some(word) = words.next() {
        let mut value = || words.next().ok_or_else(|| format!("{word} needs a value"));
        let number = |text: &String| text.parse::<u64>().map_err(|_| format!("{text:?} is no number"));
        match word.as_str() {
            "--target" => {
                let name = value()?;
                if !TARGETS.iter().any(|target| target.name == name) {
                    let names: Vec<&str> = TARGETS.iter().map(|target| target.name).collect();
                    return Err(format!("no target {name:?}; there are {}", names.join(", ")));
                }
                arguments.target = Some(name.clone());
            }
            "--seconds" => {
                arguments.length = match number(value()?)? {
                    0 => Length::Replay,
                    seconds => Length::Time(Duration::from_secs(seconds)),
                };
            }
            "--executions" => arguments.length = Length::Executions(number(value()?)?),
            "--seed" => arguments.seed = number(value()?)?,
            "--save" => arguments.save = true,
            "--input" => {
                let input = targets::from_hex(value()?).ok_or("--input wants hex digits")?;
                arguments.input = Some(input);
            }
            other => return Err(format!("unknown argument {other:?}")),
        }
    }
    if arguments.input.is_some() && arguments.target.is_none() {
        return Err("--input needs --target".into());
    }
    Ok(arguments)
}

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let arguments = match parse(&words) {
        Ok(arguments) => arguments,
        Err(error) => {
            eprint!("{error}\n\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    let chosen =
        TARGETS.iter().filter(|target| arguments.target.as_ref().is_none_or(|name| name == target.name));
    if let Some(input) = &arguments.input {
        for target in chosen {
            println!("{}: mark {:016x}", target.name, (target.run)(input));
        }
        return ExitCode::SUCCESS;
    }
    // A finding is told once, with its input; thousands of tries to make it smaller are not.
    std::panic::set_hook(Box::new(|_| {}));
    let (mut passed, mut failed, mut executions) = (0, 0, 0);
    for target in chosen {
        match driver::run(target, arguments.seed, &arguments.length, arguments.save) {
            Ok(outcome) => {
                executions += outcome.executions;
                println!(
                    "{}: {} executions, {} replayed, {} ways",
                    target.name, outcome.executions, outcome.replayed, outcome.ways
                );
                match outcome.finding {
                    None => passed += 1,
                    Some(finding) => {
                        failed += 1;
                        println!("FOUND {}: {}", target.name, finding.what);
                        println!("  again with: --target {} --input {}", target.name, to_hex(&finding.input));
                    }
                }
            }
            Err(error) => {
                failed += 1;
                println!("FAILED {}: {error}", target.name);
            }
        }
    }
    println!("{executions} executions");
    println!("{passed} passed, {failed} failed");
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
