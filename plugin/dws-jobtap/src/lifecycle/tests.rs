// SPDX-License-Identifier: MIT OR Apache-2.0

use std::fmt::Debug;

use super::*;

/// Compares a machine with a table. It contains the events, and for each state its successors, with `-` for an ignored
/// event.
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

/// Flux counts prologs and epilogs: each is finished once, and only after its start.
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

/// The handover contains lifecycles.
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
