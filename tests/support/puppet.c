// SPDX-License-Identifier: MIT OR Apache-2.0

/* puppet.c - a plugin for the job manager that performs the actions that a test requests, and records its calls.
 *
 * Its configuration {"on": {TOPIC: [ACTION, ...]}} lists the actions for the callback of each topic. Its service "do"
 * takes {"id": ID, "actions": [ACTION, ...]}, performs the actions outside of any callback, and responds with
 * {"results": [...]}. An action is an object: "do" names the action, "description", "name", "status" and so on are
 * arguments of the Flux function, and "current" addresses the job as the current one. A result contains "did", "rc"
 * and, if that is negative, "errno". The configuration {"out": {TOPIC: OBJECT}} sets the results of callbacks.
 *
 * The query of the plugin returns "calls": callbacks with their "topic" and all arguments, results of actions,
 * responses to requests, and timers, all in order.
 *
 * The service "keep" keeps its request. "answer" answers the oldest kept request with its own payload, with "errnum",
 * or with nothing. "drop" releases it. With {"leak": true} in the configuration, kept requests are not released at the
 * end.
 */
#include <errno.h>
#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

typedef struct flux_plugin flux_plugin_t;
typedef struct flux_plugin_arg flux_plugin_arg_t;
typedef struct flux_handle flux_t;
typedef struct flux_reactor flux_reactor_t;
typedef struct flux_watcher flux_watcher_t;
typedef struct flux_future flux_future_t;
typedef struct flux_msg flux_msg_t;
typedef struct flux_msg_handler flux_msg_handler_t;
typedef int (*flux_plugin_f) (flux_plugin_t *, const char *, flux_plugin_arg_t *, void *);
typedef void (*flux_msg_handler_f) (flux_t *, flux_msg_handler_t *, const flux_msg_t *, void *);
typedef void (*flux_watcher_f) (flux_reactor_t *, flux_watcher_t *, int, void *);

extern int flux_plugin_set_name (flux_plugin_t *, const char *);
extern const char *flux_plugin_get_conf (flux_plugin_t *);
extern int flux_plugin_add_handler (flux_plugin_t *, const char *, flux_plugin_f, void *);
extern int flux_plugin_aux_set (flux_plugin_t *, const char *, void *, void (*) (void *));
extern int flux_plugin_arg_unpack (flux_plugin_arg_t *, int, const char *, ...);
extern int flux_plugin_arg_set (flux_plugin_arg_t *, int, const char *);
extern void flux_plugin_arg_destroy (flux_plugin_arg_t *);
extern flux_t *flux_jobtap_get_flux (flux_plugin_t *);
extern int flux_jobtap_service_register (flux_plugin_t *, const char *, flux_msg_handler_f, void *);
extern int flux_jobtap_prolog_start (flux_plugin_t *, const char *);
extern int flux_jobtap_prolog_finish (flux_plugin_t *, uint64_t, const char *, int);
extern int flux_jobtap_epilog_start (flux_plugin_t *, const char *);
extern int flux_jobtap_epilog_finish (flux_plugin_t *, uint64_t, const char *, int);
extern int flux_jobtap_dependency_add (flux_plugin_t *, uint64_t, const char *);
extern int flux_jobtap_dependency_remove (flux_plugin_t *, uint64_t, const char *);
extern int flux_jobtap_job_subscribe (flux_plugin_t *, uint64_t);
extern int flux_jobtap_job_event_posted (flux_plugin_t *, uint64_t, const char *);
extern int flux_jobtap_event_post_pack (flux_plugin_t *, uint64_t, const char *, const char *, ...);
extern int flux_jobtap_jobspec_update_id_pack (flux_plugin_t *, uint64_t, const char *, ...);
extern int flux_jobtap_raise_exception (flux_plugin_t *, uint64_t, const char *, int, const char *, ...);
extern flux_plugin_arg_t *flux_jobtap_job_lookup (flux_plugin_t *, uint64_t);
extern int flux_log (flux_t *, int, const char *, ...);
extern flux_reactor_t *flux_get_reactor (flux_t *);
extern flux_watcher_t *flux_timer_watcher_create (flux_reactor_t *, double, double, flux_watcher_f, void *);
extern void flux_watcher_start (flux_watcher_t *);
extern void flux_watcher_destroy (flux_watcher_t *);
extern flux_future_t *flux_rpc (flux_t *, const char *, const char *, uint32_t, int);
extern int flux_rpc_get (flux_future_t *, const char **);
extern int flux_future_then (flux_future_t *, double, void (*) (flux_future_t *, void *), void *);
extern const char *flux_future_error_string (flux_future_t *);
extern void flux_future_destroy (flux_future_t *);
extern int flux_request_decode (const flux_msg_t *, const char **, const char **);
extern int flux_respond (flux_t *, const flux_msg_t *, const char *);
extern int flux_respond_error (flux_t *, const flux_msg_t *, int, const char *);
extern const flux_msg_t *flux_msg_incref (const flux_msg_t *);
extern void flux_msg_decref (const flux_msg_t *);

#define CURRENT UINT64_MAX
#define KEPT_MAX 16

struct puppet {
    flux_plugin_t *p;
    flux_t *h;
    json_t *conf;
    json_t *calls;
    const flux_msg_t *kept[KEPT_MAX];
    int nkept;
    flux_watcher_t *timer;
    int timer_times;
};

/* A request that awaits its response. */
struct pending {
    struct puppet *t;
    uint64_t id;
    json_t *action;
};

static json_t *act_all (struct puppet *t, uint64_t id, json_t *actions);

static void record (struct puppet *t, json_t *call)
{
    json_array_append_new (t->calls, call);
}

static void answered (flux_future_t *f, void *arg)
{
    struct pending *pending = arg;
    struct puppet *t = pending->t;
    const char *topic = json_string_value (json_object_get (pending->action, "topic"));
    const char *s = NULL;

    if (flux_rpc_get (f, &s) < 0)
        record (t, json_pack ("{s:s s:i s:s}",
                              "answered", topic,
                              "errno", errno,
                              "error", flux_future_error_string (f)));
    else
        record (t, json_pack ("{s:s s:o*}", "answered", topic, "payload", s ? json_loads (s, 0, NULL) : NULL));
    json_decref (act_all (t, pending->id, json_object_get (pending->action, "then")));
    flux_log (t->h, 6, "puppet: %s was answered", topic);
    flux_future_destroy (f);
    json_decref (pending->action);
    free (pending);
}

static int send_rpc (struct puppet *t, uint64_t id, json_t *action)
{
    struct pending *pending = calloc (1, sizeof (*pending));
    char *s = json_dumps (json_object_get (action, "payload"), 0);
    flux_future_t *f;

    pending->t = t;
    pending->id = id;
    pending->action = json_incref (action);
    f = flux_rpc (t->h, json_string_value (json_object_get (action, "topic")), s, UINT32_MAX, 0);
    free (s);
    return flux_future_then (f, -1., answered, pending);
}

static void timer_cb (flux_reactor_t *r, flux_watcher_t *w, int revents, void *arg)
{
    struct puppet *t = arg;

    (void)r;
    (void)revents;
    record (t, json_pack ("{s:i}", "timer", t->timer_times));
    if (--t->timer_times == 0) {
        flux_watcher_destroy (w);
        t->timer = NULL;
        flux_log (t->h, 6, "puppet: the timer has ended");
    }
}

static int start_timer (struct puppet *t, double after, double repeat, int times)
{
    if (!(t->timer = flux_timer_watcher_create (flux_get_reactor (t->h), after, repeat, timer_cb, t)))
        return -1;
    t->timer_times = times;
    flux_watcher_start (t->timer);
    return 0;
}

static int look_up (struct puppet *t, uint64_t id)
{
    flux_plugin_arg_t *args = flux_jobtap_job_lookup (t->p, id);
    json_t *o;

    if (!args || flux_plugin_arg_unpack (args, 0, "o", &o) < 0)
        return -1;
    record (t, json_pack ("{s:o}", "lookup", json_deep_copy (o)));
    flux_plugin_arg_destroy (args);
    return 0;
}

static int act (struct puppet *t, uint64_t id, json_t *action)
{
    flux_plugin_t *p = t->p;
    const char *what = NULL, *description = NULL, *name = NULL;
    int status = 0, severity = 0, times = 1, current = 0;
    double after = 0., repeat = 0.;
    json_t *context = NULL;

    json_unpack (action,
                 "{s:s s?s s?s s?i s?i s?i s?b s?F s?F s?o}",
                 "do", &what,
                 "description", &description,
                 "name", &name,
                 "status", &status,
                 "severity", &severity,
                 "times", &times,
                 "current", &current,
                 "after", &after,
                 "repeat", &repeat,
                 "context", &context);
    if (current)
        id = CURRENT;
    errno = 0;
#define IS(s) (!strcmp (what, s))
    if (IS ("dependency-add"))
        return flux_jobtap_dependency_add (p, id, description);
    if (IS ("dependency-remove"))
        return flux_jobtap_dependency_remove (p, id, description);
    if (IS ("prolog-start"))
        return flux_jobtap_prolog_start (p, description);
    if (IS ("prolog-finish"))
        return flux_jobtap_prolog_finish (p, id, description, status);
    if (IS ("epilog-start"))
        return flux_jobtap_epilog_start (p, description);
    if (IS ("epilog-finish"))
        return flux_jobtap_epilog_finish (p, id, description, status);
    if (IS ("subscribe"))
        return flux_jobtap_job_subscribe (p, id);
    if (IS ("event-posted"))
        return flux_jobtap_job_event_posted (p, id, name);
    if (IS ("post"))
        return context ? flux_jobtap_event_post_pack (p, id, name, "O", context)
                       : flux_jobtap_event_post_pack (p, id, name, NULL);
    if (IS ("update"))
        return flux_jobtap_jobspec_update_id_pack (p, id, "O", context);
    if (IS ("raise"))
        return flux_jobtap_raise_exception (p, id, name, severity, "%s", description);
    if (IS ("lookup"))
        return look_up (t, id);
    if (IS ("rpc"))
        return send_rpc (t, id, action);
    if (IS ("timer"))
        return start_timer (t, after, repeat, times);
    return -2;
}

static json_t *act_all (struct puppet *t, uint64_t id, json_t *actions)
{
    json_t *results = json_array ();
    json_t *action;
    size_t i;

    json_array_foreach (actions, i, action) {
        int rc = act (t, id, action);
        json_t *result = json_pack ("{s:O s:i}", "did", json_object_get (action, "do"), "rc", rc);
        if (rc < 0)
            json_object_set_new (result, "errno", json_integer (errno));
        json_array_append (results, result);
        record (t, result);
    }
    return results;
}

static int callback (flux_plugin_t *p, const char *topic, flux_plugin_arg_t *args, void *arg)
{
    struct puppet *t = arg;
    json_t *o, *call;
    json_int_t id;

    (void)p;
    if (flux_plugin_arg_unpack (args, 0, "o", &o) < 0 || json_unpack (o, "{s:I}", "id", &id) < 0)
        return -1;
    call = json_deep_copy (o);
    json_object_set_new (call, "topic", json_string (topic));
    record (t, call);
    json_decref (act_all (t, id, json_object_get (json_object_get (t->conf, "on"), topic)));
    return 0;
}

static int out_cb (flux_plugin_t *p, const char *topic, flux_plugin_arg_t *args, void *arg)
{
    struct puppet *t = arg;
    char *s = json_dumps (json_object_get (json_object_get (t->conf, "out"), topic), 0);
    int rc = flux_plugin_arg_set (args, 1, s);

    (void)p;
    free (s);
    return rc;
}

static int query_cb (flux_plugin_t *p, const char *topic, flux_plugin_arg_t *args, void *arg)
{
    struct puppet *t = arg;
    json_t *o = json_pack ("{s:O}", "calls", t->calls);
    char *s = json_dumps (o, 0);
    int rc = flux_plugin_arg_set (args, 1, s);

    (void)p;
    (void)topic;
    free (s);
    json_decref (o);
    return rc;
}

static json_t *request (const flux_msg_t *msg)
{
    const char *s = NULL;
    flux_request_decode (msg, NULL, &s);
    return s ? json_loads (s, 0, NULL) : NULL;
}

static void do_cb (flux_t *h, flux_msg_handler_t *mh, const flux_msg_t *msg, void *arg)
{
    json_t *o = request (msg), *actions, *response;
    json_int_t id;
    char *s;

    (void)mh;
    if (json_unpack (o, "{s:I s:o}", "id", &id, "actions", &actions) < 0) {
        flux_respond_error (h, msg, EPROTO, NULL);
        return;
    }
    response = json_pack ("{s:o}", "results", act_all (arg, id, actions));
    s = json_dumps (response, 0);
    flux_respond (h, msg, s);
    free (s);
    json_decref (response);
    json_decref (o);
}

static void keep_cb (flux_t *h, flux_msg_handler_t *mh, const flux_msg_t *msg, void *arg)
{
    struct puppet *t = arg;

    (void)h;
    (void)mh;
    t->kept[t->nkept++] = flux_msg_incref (msg);
    flux_log (t->h, 6, "puppet: kept a request");
}

static const flux_msg_t *take (struct puppet *t)
{
    const flux_msg_t *msg = t->kept[0];

    if (t->nkept == 0)
        return NULL;
    memmove (t->kept, t->kept + 1, --t->nkept * sizeof (t->kept[0]));
    return msg;
}

static void answer_cb (flux_t *h, flux_msg_handler_t *mh, const flux_msg_t *msg, void *arg)
{
    const flux_msg_t *kept = take (arg);
    json_t *o = request (msg);
    int errnum = 0;

    (void)mh;
    json_unpack (o, "{s?i}", "errnum", &errnum);
    if (errnum)
        flux_respond_error (h, kept, errnum, NULL);
    else {
        char *s = o ? json_dumps (o, 0) : NULL;
        flux_respond (h, kept, s);
        free (s);
    }
    flux_msg_decref (kept);
    flux_respond (h, msg, NULL);
    json_decref (o);
}

static void drop_cb (flux_t *h, flux_msg_handler_t *mh, const flux_msg_t *msg, void *arg)
{
    (void)mh;
    flux_msg_decref (take (arg));
    flux_respond (h, msg, NULL);
}

static void puppet_destroy (void *arg)
{
    struct puppet *t = arg;

    if (!json_object_get (t->conf, "leak"))
        while (t->nkept > 0)
            flux_msg_decref (take (t));
    flux_watcher_destroy (t->timer);
    json_decref (t->conf);
    json_decref (t->calls);
    free (t);
}

int flux_plugin_init (flux_plugin_t *p)
{
    static const char *const topics[] = {
        "job.create", "job.new", "job.state.*", "job.event.*", "job.update", "job.inactive-add", "job.destroy",
    };
    struct puppet *t = calloc (1, sizeof (*t));
    const char *conf = flux_plugin_get_conf (p);
    const char *topic;
    json_t *out;

    flux_plugin_set_name (p, "puppet");
    t->p = p;
    t->h = flux_jobtap_get_flux (p);
    t->conf = json_loads (conf ? conf : "{}", 0, NULL);
    t->calls = json_array ();
    if (flux_plugin_aux_set (p, NULL, t, puppet_destroy) < 0)
        return -1;
    for (size_t i = 0; i < sizeof (topics) / sizeof (topics[0]); i++)
        if (flux_plugin_add_handler (p, topics[i], callback, t) < 0)
            return -1;
    json_object_foreach (json_object_get (t->conf, "out"), topic, out)
        if (flux_plugin_add_handler (p, topic, out_cb, t) < 0)
            return -1;
    if (flux_plugin_add_handler (p, "plugin.query", query_cb, t) < 0
        || flux_jobtap_service_register (p, "do", do_cb, t) < 0
        || flux_jobtap_service_register (p, "keep", keep_cb, t) < 0
        || flux_jobtap_service_register (p, "answer", answer_cb, t) < 0
        || flux_jobtap_service_register (p, "drop", drop_cb, t) < 0)
        return -1;
    return 0;
}
