// SPDX-License-Identifier: MIT OR Apache-2.0

/* shell.c - a plugin for the job shell for tests of the simulator.
 *
 * In shell.init it reads the key "test" of the job through job-info.lookup, and exports it as TEST_VALUE. Without the
 * key, or with the shell option "fatal", the shell ends.
 */
#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct flux_plugin flux_plugin_t;
typedef struct flux_plugin_arg flux_plugin_arg_t;
typedef struct flux_handle flux_t;
typedef struct flux_future flux_future_t;
typedef struct flux_shell flux_shell_t;
typedef int (*flux_plugin_f) (flux_plugin_t *, const char *, flux_plugin_arg_t *, void *);

extern int flux_plugin_set_name (flux_plugin_t *, const char *);
extern const char *flux_plugin_get_conf (flux_plugin_t *);
extern int flux_plugin_add_handler (flux_plugin_t *, const char *, flux_plugin_f, void *);
extern flux_shell_t *flux_plugin_get_shell (flux_plugin_t *);
extern flux_t *flux_shell_get_flux (flux_shell_t *);
extern int flux_shell_info_unpack (flux_shell_t *, const char *, ...);
extern int flux_shell_getopt (flux_shell_t *, const char *, char **);
extern int flux_shell_setenvf (flux_shell_t *, int, const char *, const char *, ...);
extern void flux_shell_log (const char *, int, const char *, int, const char *, ...);
extern void flux_shell_fatal (const char *, const char *, int, int, int, const char *, ...);
extern flux_future_t *flux_rpc (flux_t *, const char *, const char *, uint32_t, int);
extern int flux_rpc_get (flux_future_t *, const char **);
extern const char *flux_future_error_string (flux_future_t *);
extern void flux_future_destroy (flux_future_t *);

#define FATAL(...) flux_shell_fatal ("test", __FILE__, __LINE__, 0, 7, __VA_ARGS__)

static int init_cb (flux_plugin_t *p, const char *topic, flux_plugin_arg_t *args, void *arg)
{
    flux_shell_t *shell = flux_plugin_get_shell (p);
    flux_future_t *f;
    const char *answer;
    char *option;
    char request[128];
    int64_t id;
    int rank, size, owner;

    (void)topic;
    (void)arg;
    if (args)
        FATAL ("a stage has arguments");
    if (flux_shell_info_unpack (shell,
                                "{s:I s:i s:i s:i}",
                                "jobid", &id,
                                "rank", &rank,
                                "size", &size,
                                "instance_owner", &owner) < 0)
        return -1;
    if (flux_shell_getopt (shell, "fatal", &option) == 1)
        FATAL ("asked to fail with %s", option);
    snprintf (request, sizeof (request), "{\"id\":%lld,\"keys\":[\"test\"],\"flags\":0}", (long long)id);
    f = flux_rpc (flux_shell_get_flux (shell), "job-info.lookup", request, UINT32_MAX, 0);
    if (!f || flux_rpc_get (f, &answer) < 0)
        FATAL ("lookup: %s", flux_future_error_string (f));
    flux_shell_setenvf (shell, 1, "TEST_VALUE", "%s", strstr (answer, "canary") ? "canary" : answer);
    flux_shell_setenvf (shell, 1, "TEST_CONF", "%s", flux_plugin_get_conf (p) ? flux_plugin_get_conf (p) : "none");
    flux_shell_setenvf (shell, 0, "TEST_KEPT", "%s", "overwritten");
    flux_future_destroy (f);
    flux_shell_log ("test", 4, __FILE__, __LINE__, "rank %d of %d", rank, size);
    flux_shell_log ("test", 6, __FILE__, __LINE__, "detail");
    return 0;
}

static int stage_cb (flux_plugin_t *p, const char *topic, flux_plugin_arg_t *args, void *arg)
{
    (void)p;
    (void)args;
    (void)arg;
    flux_shell_log ("test", 4, __FILE__, __LINE__, "%s", topic);
    return 0;
}

int flux_plugin_init (flux_plugin_t *p)
{
    if (flux_plugin_set_name (p, "test") < 0
        || flux_plugin_add_handler (p, "shell.init", init_cb, NULL) < 0
        || flux_plugin_add_handler (p, "shell.start", stage_cb, NULL) < 0
        || flux_plugin_add_handler (p, "shell.exit", stage_cb, NULL) < 0)
        return -1;
    return 0;
}
