//! The options that overrule the planner's rules, or choose whose they are.

use clap::builder::PossibleValuesParser;
use wgrnn::kernels::gemm::Form;
use wgrnn::plan::sequence::{Levels, StepForm, Strategy};
use wgrnn::plan::{DeviceKind, Force};
use wgrnn::{Context, Result};

/// The rules for another kind of device than the one that runs.
#[derive(Debug, clap::Args)]
pub(crate) struct Rules {
    /// Plan by the rules for this kind of device: a software adapter, or the CPU, runs what a hardware GPU
    /// would
    #[arg(long, value_name = "KIND", value_parser = PossibleValuesParser::new(ADAPTERS.map(DeviceKind::name)))]
    rules: Option<String>,
}

/// The kinds whose rules every device can follow.
const ADAPTERS: [DeviceKind; 2] = [DeviceKind::Software, DeviceKind::Gpu];

impl Rules {
    /// The device with plans by these rules, or its own.
    pub(crate) fn of(&self, context: &Context) -> Result<Context> {
        let named = |kind: &DeviceKind| Some(kind.name()) == self.rules.as_deref();
        match ADAPTERS.into_iter().find(named) {
            Some(kind) => context.planning_for(kind),
            None => Ok(context.clone()),
        }
    }
}

/// What is chosen wherever it can be, whatever the rules say.
#[derive(Debug, clap::Args)]
pub(crate) struct Choices {
    /// How the steps of a layer are run, whatever the rules say
    #[arg(long, value_name = "NAME", value_parser = PossibleValuesParser::new(Strategy::ALL.map(Strategy::name)))]
    strategy: Option<String>,
    /// The form of steps, likewise
    #[arg(long, value_name = "NAME", value_parser = PossibleValuesParser::new(StepForm::ALL.map(StepForm::name)))]
    step: Option<String>,
    /// How the levels of a layer are run: its directions, or the layers of a stack, likewise
    #[arg(long, value_name = "NAME", value_parser = PossibleValuesParser::new(Levels::ALL.map(Levels::name)))]
    levels: Option<String>,
    /// The form of matrix products, likewise
    #[arg(long, value_name = "NAME", value_parser = PossibleValuesParser::new(Form::ALL.map(Form::name)))]
    product: Option<String>,
}

impl Choices {
    /// The names as choices.
    pub(crate) fn force(&self) -> Force {
        let strategy = |s: &Strategy| Some(s.name()) == self.strategy.as_deref();
        let step = |f: &StepForm| Some(f.name()) == self.step.as_deref();
        let levels = |l: &Levels| Some(l.name()) == self.levels.as_deref();
        let form = |f: &Form| Some(f.name()) == self.product.as_deref();
        Force {
            strategy: Strategy::ALL.into_iter().find(strategy),
            step: StepForm::ALL.into_iter().find(step),
            levels: Levels::ALL.into_iter().find(levels),
            gemm: Form::ALL.into_iter().find(form),
        }
    }
}
