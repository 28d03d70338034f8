// SPDX-License-Identifier: MIT OR Apache-2.0

/* option.c - a plugin for the job shell that sets options when it is loaded, and logs their values in shell.init. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

typedef struct flux_plugin flux_plugin_t;
typedef struct flux_plugin_arg flux_plugin_arg_t;
typedef struct flux_shell flux_shell_t;

extern int flux_plugin_set_name (flux_plugin_t *, const char *);
extern int flux_plugin_add_handler (flux_plugin_t *,
                                    const char *,
                                    int (*) (flux_plugin_t *, const char *, flux_plugin_arg_t *, void *),
                                    void *);
extern flux_shell_t *flux_plugin_get_shell (flux_plugin_t *);
extern int flux_shell_info_unpack (flux_shell_t *, const char *, ...);
extern int flux_shell_getopt (flux_shell_t *, const char *, char **);
extern int flux_shell_getopt_unpack (flux_shell_t *, const char *, const char *, ...);
extern int flux_shell_setopt (flux_shell_t *, const char *, const char *);
extern void flux_shell_log (const char *, int, const char *, int, const char *, ...);

#define WARN(...) flux_shell_log ("option", 4, __FILE__, __LINE__, __VA_ARGS__)

static int init_cb (flux_plugin_t *p, const char *topic, flux_plugin_arg_t *args, void *arg)
{
    flux_shell_t *shell = flux_plugin_get_shell (p);
    const char *mapping, *scheme;
    char *text = NULL;
    int rc;

    (void)topic;
    (void)args;
    (void)arg;
    rc = flux_shell_getopt (shell, "made", &text);
    WARN ("made: %d %s", rc, rc == 1 ? text : "");
    free (text);
    rc = flux_shell_getopt_unpack (shell, "made", "{s:s}", "scheme", &scheme);
    WARN ("unpacked: %d %s", rc, rc == 1 ? scheme : "");
    rc = flux_shell_info_unpack (shell,
                                 "{s:{s:{s:{s:{s:{s:{s:s}}}}}}}",
                                 "jobspec", "attributes", "system", "shell", "options", "made", "scheme", &mapping);
    WARN ("info: %d %s", rc, rc == 0 ? mapping : "");
    WARN ("given: %d", flux_shell_getopt (shell, "given", NULL));
    WARN ("unset again: %d", flux_shell_setopt (shell, "given", NULL));
    WARN ("no JSON: %d", flux_shell_setopt (shell, "bad", "{"));
    return 0;
}

int flux_plugin_init (flux_plugin_t *p)
{
    flux_shell_t *shell = flux_plugin_get_shell (p);
    int stop = flux_shell_getopt (shell, "stop", NULL);

    if (flux_plugin_set_name (p, "option") < 0
        || flux_plugin_add_handler (p, "shell.init", init_cb, NULL) < 0
        || flux_shell_setopt (shell, "made", "{\"scheme\":\"manual\",\"value\":\"[]\"}") < 0
        || flux_shell_setopt (shell, "verbose", "2") < 0
        || (stop == 1 && flux_shell_setopt (shell, "fatal", "\"why\"") < 0)
        || (flux_shell_getopt (shell, "given", NULL) == 1 && flux_shell_setopt (shell, "given", NULL) < 0))
        return -1;
    return 0;
}
