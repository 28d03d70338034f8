// SPDX-License-Identifier: MIT OR Apache-2.0

//! The state of a rabbit job: small state machines, each with a table of its transitions.
//!
//! ```text
//! Workflow  None ─► Asked ─► Exists ─► ResourcesKnown                      (DEPEND)
//! Shells    None ─► Running ─► Ended                                       (RUN to CLEANUP)
//! Prolog    None ─► SetupDue ─► Waiting ─► Finished                        (RUN)
//! Epilog    None ─► Due ─► Sent ─► Finished                                (CLEANUP, and orphaned workflows)
//! Knowledge Known ◄─► Reading                                              (from before the plugin was loaded)
//! ```
//!
//! Flux counts prologs and epilogs, so one is finished only in a state in which this plugin has started it.

use serde::{Deserialize, Serialize};

/// A state machine.
pub trait Machine: Copy {
    type Event: Copy;

    /// Returns the state after an event; none if the event is ignored in this state.
    fn after(self, event: Self::Event) -> Option<Self>;

    /// Applies an event. Returns false if the event is ignored.
    fn on(&mut self, event: Self::Event) -> bool {
        let next = self.after(event);
        *self = next.unwrap_or(*self);
        next.is_some()
    }
}

/// The state of a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Lifecycle {
    pub origin: Origin,
    pub knowledge: Knowledge,
    pub workflow: Workflow,
    pub shells: Shells,
    pub prolog: Prolog,
    pub epilog: Epilog,
}

/// The plugin that a job was submitted to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Origin {
    /// This plugin.
    #[default]
    Submitted,
    /// A former plugin.
    Inherited,
}

/// The knowledge of a job's state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Knowledge {
    #[default]
    Known,
    /// Its eventlog is being read.
    Reading,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KnowledgeEvent {
    Lost,
    Gained,
}

/// The Workflow of a job in Kubernetes, and the resources that it needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Workflow {
    #[default]
    None,
    /// `dws.create` was sent.
    Asked,
    /// The former plugin may have sent `dws.create`.
    Inherited,
    Exists,
    /// The jobspec contains the resources, and the job no longer waits for its Workflow.
    ResourcesKnown,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WorkflowEvent {
    /// The job is from before this plugin was loaded.
    Inherited,
    /// `dws.create` was sent.
    Asked,
    /// The service refused or did not answer.
    Refused,
    /// The service created it, or the job has its memo `rabbit_workflow`.
    Created,
    /// The service sent the resources, or the eventlog contains them.
    ResourcesKnown,
}

/// The job shells.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Shells {
    /// No shell is known to have started.
    #[default]
    None,
    Running,
    /// They started and ended.
    Ended,
    /// No event about them will come. They may have started.
    Silent,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ShellsEvent {
    Started,
    Finished,
    /// The resources are not in use any more, or the shells are from before a restart.
    Silent,
}

/// The prolog `dws-setup`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Prolog {
    #[default]
    None,
    /// It was started to hold the job while its eventlog is read.
    Held,
    /// `dws.setup` must be sent.
    SetupDue,
    /// The service is setting up the rabbits, or the variables that it sent are being delivered.
    Waiting,
    /// The plugin is looking for a record that the former plugin may have committed.
    Looking,
    Finished,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PrologEvent {
    /// It was started to hold the job.
    Held,
    /// The job is in its first prolog, and its rabbits must be set up.
    Started,
    /// An earlier one is outstanding.
    FoundOutstanding,
    /// An earlier one has finished.
    FoundFinished,
    SetupSent,
    /// The service is absent.
    SetupUnheard,
    LookedFor,
    /// The look-up has ended, or the service sent the variables again.
    Answered,
    Finished,
}

/// The epilog `dws-epilog`, and whether the service received `dws.post_run`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Epilog {
    #[default]
    None,
    /// It was started to hold the job while its eventlog is read.
    Held,
    /// `dws.post_run` must be sent.
    Due,
    /// `dws.post_run` must be sent, and may have been sent before.
    DueAgain,
    /// The service is tearing down the Workflow.
    Sent,
    /// The service is tearing down the Workflow, or has done so before.
    SentAgain,
    Finished,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EpilogEvent {
    /// It was started to hold the job.
    Held,
    /// It is the first epilog of the job.
    Started,
    /// An earlier one is outstanding.
    FoundOutstanding,
    /// The job ended while no plugin was loaded: its workflow is orphaned.
    Orphaned,
    Sent,
    /// The service is absent or refused.
    Unheard,
    /// The service may have received `dws.post_run`.
    Unanswered,
    Finished,
}

impl Lifecycle {
    /// Returns the state of a job from before this plugin was loaded. `left` is its state in the handover.
    pub fn inherited(left: Option<Lifecycle>) -> Self {
        let mut life = left.unwrap_or_default();
        life.origin = Origin::Inherited;
        life.workflow.on(WorkflowEvent::Inherited);
        life
    }

    /// Returns whether a plugin held the job in its prolog or epilog.
    pub fn had_resources(&self) -> bool {
        (self.prolog, self.epilog) != (Prolog::None, Epilog::None)
    }
}

impl Workflow {
    /// Returns whether the Workflow is known to exist.
    pub fn exists(self) -> bool {
        matches!(self, Workflow::Exists | Workflow::ResourcesKnown)
    }

    /// Returns whether the Workflow may exist, so that it must be torn down.
    pub fn may_exist(self) -> bool {
        self.exists() || self == Workflow::Inherited
    }
}

impl Shells {
    pub fn have_started(self) -> bool {
        matches!(self, Shells::Running | Shells::Ended)
    }

    pub fn are_over(self) -> bool {
        matches!(self, Shells::Ended | Shells::Silent)
    }
}

impl Prolog {
    /// Returns whether the prolog is outstanding, so that this plugin must finish it.
    pub fn is_outstanding(self) -> bool {
        matches!(self, Prolog::SetupDue | Prolog::Waiting | Prolog::Looking)
    }
}

impl Epilog {
    pub fn is_outstanding(self) -> bool {
        !matches!(self, Epilog::None | Epilog::Finished)
    }

    /// Returns whether `dws.post_run` must be sent as soon as no shell is running.
    pub fn is_due(self) -> bool {
        matches!(self, Epilog::Due | Epilog::DueAgain)
    }

    /// Returns whether `dws.post_run` was sent.
    pub fn is_sent(self) -> bool {
        matches!(self, Epilog::Sent | Epilog::SentAgain)
    }

    /// Returns whether `dws.post_run` may have been sent twice, so that a refusal is harmless.
    pub fn is_repeated(self) -> bool {
        matches!(self, Epilog::DueAgain | Epilog::SentAgain)
    }
}

// Tables of transitions. The compiler checks that each state handles each event.

impl Machine for Knowledge {
    type Event = KnowledgeEvent;

    fn after(self, event: KnowledgeEvent) -> Option<Self> {
        use KnowledgeEvent::*;
        match (self, event) {
            (Self::Known, Lost) => Some(Self::Reading),
            (Self::Reading, Gained) => Some(Self::Known),
            (Self::Known, Gained) | (Self::Reading, Lost) => None,
        }
    }
}

impl Machine for Workflow {
    type Event = WorkflowEvent;

    fn after(self, event: WorkflowEvent) -> Option<Self> {
        use WorkflowEvent::*;
        match (self, event) {
            (Self::None | Self::Asked, Inherited) => Some(Self::Inherited),
            // The eventlog decides whether the job still waits.
            (Self::ResourcesKnown, Inherited) => Some(Self::Exists),
            (Self::None, Asked) => Some(Self::Asked),
            (Self::Asked, Refused) => Some(Self::None),
            (Self::None | Self::Asked | Self::Inherited, Created) => Some(Self::Exists),
            (Self::None | Self::Asked | Self::Inherited | Self::Exists, ResourcesKnown) => Some(Self::ResourcesKnown),
            (Self::Inherited | Self::Exists, Inherited)
            | (Self::Asked | Self::Inherited | Self::Exists | Self::ResourcesKnown, Asked)
            | (Self::None | Self::Inherited | Self::Exists | Self::ResourcesKnown, Refused)
            | (Self::Exists | Self::ResourcesKnown, Created)
            | (Self::ResourcesKnown, ResourcesKnown) => None,
        }
    }
}

impl Machine for Shells {
    type Event = ShellsEvent;

    fn after(self, event: ShellsEvent) -> Option<Self> {
        use ShellsEvent::{Finished, Started};
        match (self, event) {
            (Self::None, Started) => Some(Self::Running),
            (Self::None, ShellsEvent::Silent) => Some(Self::Silent),
            (Self::None | Self::Running | Self::Silent, Finished)
            | (Self::Running, ShellsEvent::Silent)
            | (Self::Silent, Started) => Some(Self::Ended),
            (Self::Running, Started)
            | (Self::Silent, ShellsEvent::Silent)
            | (Self::Ended, Started | Finished | ShellsEvent::Silent) => None,
        }
    }
}

impl Machine for Prolog {
    type Event = PrologEvent;

    fn after(self, event: PrologEvent) -> Option<Self> {
        use PrologEvent::*;
        match (self, event) {
            (Self::None, Held) => Some(Self::Held),
            (Self::None | Self::Held, Started) => Some(Self::SetupDue),
            (Self::None | Self::Held, FoundOutstanding) => Some(Self::Waiting),
            (Self::None | Self::Held | Self::SetupDue | Self::Waiting | Self::Looking, FoundFinished)
            | (Self::SetupDue | Self::Waiting | Self::Looking, Finished) => Some(Self::Finished),
            (Self::SetupDue, SetupSent) | (Self::Looking, Answered) => Some(Self::Waiting),
            (Self::Waiting, SetupUnheard) => Some(Self::SetupDue),
            (Self::SetupDue | Self::Waiting, LookedFor) => Some(Self::Looking),
            (Self::None | Self::Held, SetupSent | SetupUnheard | LookedFor | Answered | Finished)
            | (Self::Held, Held)
            | (Self::SetupDue, Held | Started | FoundOutstanding | SetupUnheard | Answered)
            | (Self::Waiting, Held | Started | FoundOutstanding | SetupSent | Answered)
            | (Self::Looking, Held | Started | FoundOutstanding | SetupSent | SetupUnheard | LookedFor)
            | (
                Self::Finished,
                Held | Started | FoundOutstanding | FoundFinished | SetupSent | SetupUnheard | LookedFor | Answered
                | Finished,
            ) => None,
        }
    }
}

impl Machine for Epilog {
    type Event = EpilogEvent;

    fn after(self, event: EpilogEvent) -> Option<Self> {
        use EpilogEvent::{FoundOutstanding, Held, Orphaned, Started, Unanswered, Unheard};
        match (self, event) {
            (Self::None, Held) => Some(Self::Held),
            (Self::None | Self::Held, Started) => Some(Self::Due),
            (Self::Held, FoundOutstanding) => Some(Self::DueAgain),
            (Self::None | Self::Held | Self::DueAgain | Self::Sent | Self::SentAgain, Orphaned) => Some(Self::Due),
            (Self::Due, EpilogEvent::Sent) => Some(Self::Sent),
            (Self::DueAgain, EpilogEvent::Sent) => Some(Self::SentAgain),
            (Self::Sent, Unheard) => Some(Self::Due),
            (Self::SentAgain, Unheard) | (Self::Sent | Self::SentAgain, Unanswered) => Some(Self::DueAgain),
            (Self::Held | Self::Due | Self::DueAgain | Self::Sent | Self::SentAgain, EpilogEvent::Finished) => {
                Some(Self::Finished)
            }
            (Self::None, FoundOutstanding | EpilogEvent::Sent | Unheard | Unanswered | EpilogEvent::Finished)
            | (Self::Held, Held | EpilogEvent::Sent | Unheard | Unanswered)
            | (Self::Due, Orphaned)
            | (Self::Due | Self::DueAgain, Held | Started | FoundOutstanding | Unheard | Unanswered)
            | (Self::Sent | Self::SentAgain, Held | Started | FoundOutstanding | EpilogEvent::Sent)
            | (
                Self::Finished,
                Held
                | Started
                | FoundOutstanding
                | Orphaned
                | EpilogEvent::Sent
                | Unheard
                | Unanswered
                | EpilogEvent::Finished,
            ) => None,
        }
    }
}

#[cfg(test)]
mod tests;
