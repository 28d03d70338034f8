//! How far a rabbit job has come: small state machines, each with a table of its transitions.
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
pub(super) trait Machine: Copy {
    type Event: Copy;

    /// Returns the state after an event; nothing if the event is ignored in this state.
    fn after(self, event: Self::Event) -> Option<Self>;

    /// Applies an event. Returns whether it was not ignored.
    fn on(&mut self, event: Self::Event) -> bool {
        let next = self.after(event);
        *self = next.unwrap_or(*self);
        next.is_some()
    }
}

/// Where a job is, as far as it is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Lifecycle {
    pub origin: Origin,
    pub knowledge: Knowledge,
    pub workflow: Workflow,
    pub shells: Shells,
    pub prolog: Prolog,
    pub epilog: Epilog,
}

/// Where a job comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(super) enum Origin {
    /// It was submitted to this plugin.
    #[default]
    Submitted,
    /// It is from before this plugin was loaded.
    Inherited,
}

/// Whether it is known where a job is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(super) enum Knowledge {
    #[default]
    Known,
    /// Its eventlog is being read.
    Reading,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum KnowledgeEvent {
    Lost,
    Gained,
}

/// The Workflow of a job in Kubernetes, and the resources that it needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(super) enum Workflow {
    #[default]
    None,
    /// `dws.create` is on its way.
    Asked,
    /// The plugin before this one may have asked for it.
    Inherited,
    Exists,
    /// The jobspec has the resources, and the job does not wait for its Workflow any more.
    ResourcesKnown,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum WorkflowEvent {
    /// The job is from before this plugin was loaded.
    Inherited,
    /// `dws.create` was sent.
    Asked,
    /// The service refused, or did not answer.
    Refused,
    /// The service has created it, or the job has its memo `rabbit_workflow`.
    Created,
    /// The resources came, or the eventlog says so.
    ResourcesKnown,
}

/// The job shells.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(super) enum Shells {
    /// None has started, as far as it is known.
    #[default]
    None,
    Running,
    /// They have started, and ended.
    Ended,
    /// Nothing will be heard of them. It is not known whether they had started.
    Silent,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ShellsEvent {
    Started,
    Finished,
    /// Nothing uses the resources any more; or they are from before a restart.
    Silent,
}

/// The prolog `dws-setup`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(super) enum Prolog {
    #[default]
    None,
    /// It was started to hold the job while its eventlog is read.
    Held,
    /// `dws.setup` is to be sent.
    SetupDue,
    /// The service sets the rabbits up, or what it sent is being delivered.
    Waiting,
    /// It is looked for the record that the plugin before this one may have committed.
    Looking,
    Finished,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PrologEvent {
    /// It was started to hold the job.
    Held,
    /// It is the first prolog of the job, whose rabbits are to be set up.
    Started,
    /// One from before is outstanding.
    FoundOutstanding,
    /// One from before is over.
    FoundFinished,
    SetupSent,
    /// The service is not there.
    SetupUnheard,
    LookedFor,
    /// There is a record, or none, or the service has sent the variables once more.
    Answered,
    Finished,
}

/// The epilog `dws-epilog`, and what the service knows of the end of the job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(super) enum Epilog {
    #[default]
    None,
    /// It was started to hold the job while its eventlog is read.
    Held,
    /// `dws.post_run` is to be sent.
    Due,
    /// It is to be sent, and may have been sent before.
    DueAgain,
    /// The service tears the Workflow down.
    Sent,
    /// So it does, unless it had done before.
    SentAgain,
    Finished,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum EpilogEvent {
    /// It was started to hold the job.
    Held,
    /// It is the first epilog of the job.
    Started,
    /// One from before is outstanding.
    FoundOutstanding,
    /// The job ended while no plugin was loaded: its workflow is orphaned.
    Orphaned,
    Sent,
    /// The service is not there, or refused.
    Unheard,
    /// It is not known whether the service has heard.
    Unanswered,
    Finished,
}

impl Lifecycle {
    /// Of a job from before this plugin was loaded. `left` is what the plugin before this one knew.
    pub fn inherited(left: Option<Lifecycle>) -> Self {
        let mut life = left.unwrap_or_default();
        life.origin = Origin::Inherited;
        life.workflow.on(WorkflowEvent::Inherited);
        life
    }

    /// Returns whether a plugin has held the job in its prolog or epilog.
    pub fn had_resources(&self) -> bool {
        (self.prolog, self.epilog) != (Prolog::None, Epilog::None)
    }
}

impl Workflow {
    /// Returns whether there is a Workflow for all that is known.
    pub fn exists(self) -> bool {
        matches!(self, Workflow::Exists | Workflow::ResourcesKnown)
    }

    /// Returns whether there may be one, so that it must not be forgotten.
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
    /// Returns whether it is outstanding, and to be finished by this plugin.
    pub fn is_outstanding(self) -> bool {
        matches!(self, Prolog::SetupDue | Prolog::Waiting | Prolog::Looking)
    }
}

impl Epilog {
    pub fn is_outstanding(self) -> bool {
        !matches!(self, Epilog::None | Epilog::Finished)
    }

    /// Returns whether `dws.post_run` is to be sent as soon as no shell is running.
    pub fn is_due(self) -> bool {
        matches!(self, Epilog::Due | Epilog::DueAgain)
    }

    /// Returns whether it was sent.
    pub fn is_sent(self) -> bool {
        matches!(self, Epilog::Sent | Epilog::SentAgain)
    }

    /// Returns whether it may have been sent twice, so that a refusal says nothing.
    pub fn is_repeated(self) -> bool {
        matches!(self, Epilog::DueAgain | Epilog::SentAgain)
    }
}

// The tables. The compiler sees to it that each state has an answer to each event.

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
            // The eventlog says whether the job still waits.
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
mod tests {
    use std::fmt::Debug;

    use super::*;

    /// Compares a machine with a table: the events, and for each state what it becomes, with `-` where one is ignored.
    fn is_as_tabled<M: Machine + Debug>(states: &[M], events: &[M::Event], table: &str)
    where
        M::Event: Debug,
    {
        let mut rows = table.trim().lines().map(|row| row.split_whitespace());
        let names: Vec<String> = events.iter().map(|event| format!("{event:?}")).collect();
        let head: Vec<&str> = rows.next().expect("a head").collect();
        assert_eq!(head, names);
        for state in states {
            let mut row = rows.next().expect("a row for each state");
            assert_eq!(row.next().map(str::to_owned), Some(format!("{state:?}")));
            for event in events {
                let next = state.after(*event).map_or("-".to_owned(), |next| format!("{next:?}"));
                assert_eq!(row.next(), Some(next.as_str()), "{state:?} on {event:?}");
            }
        }
        assert!(rows.next().is_none());
    }

    #[test]
    fn knowledge() {
        use KnowledgeEvent::*;
        let table = "
                     Lost     Gained
            Known    Reading  -
            Reading  -        Known";
        is_as_tabled(&[Knowledge::Known, Knowledge::Reading], &[Lost, Gained], table);
    }

    #[test]
    fn workflow() {
        use WorkflowEvent::*;
        let states = [
            Workflow::None,
            Workflow::Asked,
            Workflow::Inherited,
            Workflow::Exists,
            Workflow::ResourcesKnown,
        ];
        let table = "
                            Inherited  Asked  Refused  Created  ResourcesKnown
            None            Inherited  Asked  -        Exists   ResourcesKnown
            Asked           Inherited  -      None     Exists   ResourcesKnown
            Inherited       -          -      -        Exists   ResourcesKnown
            Exists          -          -      -        -        ResourcesKnown
            ResourcesKnown  Exists     -      -        -        -";
        is_as_tabled(&states, &[Inherited, Asked, Refused, Created, ResourcesKnown], table);
    }

    #[test]
    fn shells() {
        use ShellsEvent::*;
        let states = [Shells::None, Shells::Running, Shells::Ended, Shells::Silent];
        let table = "
                     Started  Finished  Silent
            None     Running  Ended     Silent
            Running  -        Ended     Ended
            Ended    -        -         -
            Silent   Ended    Ended     -";
        is_as_tabled(&states, &[Started, Finished, Silent], table);
    }

    const PROLOGS: [Prolog; 6] = [
        Prolog::None,
        Prolog::Held,
        Prolog::SetupDue,
        Prolog::Waiting,
        Prolog::Looking,
        Prolog::Finished,
    ];

    const PROLOG_EVENTS: [PrologEvent; 9] = {
        use PrologEvent::*;
        [
            Held,
            Started,
            FoundOutstanding,
            FoundFinished,
            SetupSent,
            SetupUnheard,
            LookedFor,
            Answered,
            Finished,
        ]
    };

    #[test]
    fn prolog() {
        let table = "
                      Held  Started   FoundOutstanding  FoundFinished  SetupSent  SetupUnheard  LookedFor  Answered  Finished
            None      Held  SetupDue  Waiting           Finished       -          -             -          -         -
            Held      -     SetupDue  Waiting           Finished       -          -             -          -         -
            SetupDue  -     -         -                 Finished       Waiting    -             Looking    -         Finished
            Waiting   -     -         -                 Finished       -          SetupDue      Looking    -         Finished
            Looking   -     -         -                 Finished       -          -             -          Waiting   Finished
            Finished  -     -         -                 -              -          -             -          -         -";
        is_as_tabled(&PROLOGS, &PROLOG_EVENTS, table);
    }

    const EPILOGS: [Epilog; 7] = [
        Epilog::None,
        Epilog::Held,
        Epilog::Due,
        Epilog::DueAgain,
        Epilog::Sent,
        Epilog::SentAgain,
        Epilog::Finished,
    ];

    const EPILOG_EVENTS: [EpilogEvent; 8] = {
        use EpilogEvent::*;
        [
            Held,
            Started,
            FoundOutstanding,
            Orphaned,
            Sent,
            Unheard,
            Unanswered,
            Finished,
        ]
    };

    #[test]
    fn epilog() {
        let table = "
                       Held  Started  FoundOutstanding  Orphaned  Sent       Unheard   Unanswered  Finished
            None       Held  Due      -                 Due       -          -         -           -
            Held       -     Due      DueAgain          Due       -          -         -           Finished
            Due        -     -        -                 -         Sent       -         -           Finished
            DueAgain   -     -        -                 Due       SentAgain  -         -           Finished
            Sent       -     -        -                 Due       -          Due       DueAgain    Finished
            SentAgain  -     -        -                 Due       -          DueAgain  DueAgain    Finished
            Finished   -     -        -                 -         -          -         -           -";
        is_as_tabled(&EPILOGS, &EPILOG_EVENTS, table);
    }

    /// Flux counts prologs and epilogs: each is finished once, and only where it was started.
    #[test]
    fn what_is_finished_stays_finished_and_was_outstanding() {
        for state in PROLOGS {
            for event in PROLOG_EVENTS {
                let next = state.after(event);
                assert!(state != Prolog::Finished || next.is_none());
                assert_eq!(
                    event == PrologEvent::Finished && next.is_some(),
                    event == PrologEvent::Finished && state.is_outstanding()
                );
            }
        }
        for state in EPILOGS {
            for event in EPILOG_EVENTS {
                let next = state.after(event);
                assert!(state != Epilog::Finished || next.is_none());
                assert_eq!(
                    event == EpilogEvent::Finished && next.is_some(),
                    event == EpilogEvent::Finished && state.is_outstanding()
                );
            }
        }
    }

    /// It is left for the next plugin.
    #[test]
    fn each_lifecycle_is_read_as_it_was_written() {
        for prolog in PROLOGS {
            for epilog in EPILOGS {
                let life = Lifecycle {
                    prolog,
                    epilog,
                    ..Lifecycle::default()
                };
                let text = serde_json::to_string(&life).expect("it has no maps");
                assert_eq!(serde_json::from_str::<Lifecycle>(&text).ok(), Some(life));
            }
        }
        assert!(serde_json::from_str::<Lifecycle>(r#"{"prolog":"Finished"}"#).is_err());
    }
}
