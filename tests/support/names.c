// SPDX-License-Identifier: MIT OR Apache-2.0

/* names.c - a name service for tests, loaded with LD_PRELOAD.
 *
 * The file $TEST_NAMES contains a line for each user (user NAME UID GID) and each group (group NAME GID MEMBER…).
 * Others do not exist. While the FIFO $TEST_NAMES.hang exists, a lookup of a uid blocks until somebody writes to the
 * FIFO. While the file $TEST_NAMES.fail exists, lookups fail with an I/O error. Each lookup of a uid adds a line to
 * $TEST_NAMES.asked.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <pwd.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>

#define WORDS 64

static const char *names (void)
{
    const char *path = getenv ("TEST_NAMES");
    return path ? path : "/dev/null";
}

static void beside (char *path, size_t size, const char *suffix)
{
    snprintf (path, size, "%s.%s", names (), suffix);
}

/* Splits the next line of a kind into words, which stay in line. */
static int next (FILE *f, const char *kind, char *line, size_t size, char **words)
{
    while (fgets (line, size, f)) {
        int n = 0;
        char *save;
        char *word = strtok_r (line, " \n", &save);
        while (word && n < WORDS) {
            words[n++] = word;
            word = strtok_r (NULL, " \n", &save);
        }
        if (n >= 3 && strcmp (words[0], kind) == 0)
            return n;
    }
    return 0;
}

static char *copy (char **buf, size_t *len, const char *text)
{
    size_t size = strlen (text) + 1;
    char *at = *buf;
    if (size > *len)
        return NULL;
    memcpy (at, text, size);
    *buf += size;
    *len -= size;
    return at;
}

static int find_user (const char *name,
                      uid_t uid,
                      struct passwd *pwd,
                      char *buf,
                      size_t len,
                      struct passwd **result)
{
    char line[4096], *words[WORDS];
    FILE *f = fopen (names (), "re");
    *result = NULL;
    while (f && next (f, "user", line, sizeof (line), words) >= 4) {
        if (name ? strcmp (words[1], name) != 0 : strtoul (words[2], NULL, 10) != uid)
            continue;
        memset (pwd, 0, sizeof (*pwd));
        pwd->pw_uid = strtoul (words[2], NULL, 10);
        pwd->pw_gid = strtoul (words[3], NULL, 10);
        if (!(pwd->pw_name = copy (&buf, &len, words[1]))
            || !(pwd->pw_passwd = pwd->pw_gecos = copy (&buf, &len, ""))
            || !(pwd->pw_dir = copy (&buf, &len, "/"))
            || !(pwd->pw_shell = copy (&buf, &len, "/bin/sh"))) {
            fclose (f);
            return ERANGE;
        }
        *result = pwd;
        break;
    }
    if (f)
        fclose (f);
    return 0;
}

int getpwnam_r (const char *name, struct passwd *pwd, char *buf, size_t len, struct passwd **result)
{
    return find_user (name, 0, pwd, buf, len, result);
}

int getpwuid_r (uid_t uid, struct passwd *pwd, char *buf, size_t len, struct passwd **result)
{
    char path[4096], line[32];
    int fd;
    beside (path, sizeof (path), "asked");
    if ((fd = open (path, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0666)) >= 0) {
        int n = snprintf (line, sizeof (line), "%u\n", (unsigned int)uid);
        if (write (fd, line, n) < 0)
            abort ();
        close (fd);
    }
    beside (path, sizeof (path), "hang");
    if ((fd = open (path, O_RDONLY | O_CLOEXEC)) >= 0) {
        char c;
        while (read (fd, &c, 1) < 0 && errno == EINTR)
            ;
        close (fd);
    }
    beside (path, sizeof (path), "fail");
    if (access (path, F_OK) == 0) {
        *result = NULL;
        return EIO;
    }
    return find_user (NULL, uid, pwd, buf, len, result);
}

static int find_group (const char *name,
                       gid_t gid,
                       struct group *grp,
                       char *buf,
                       size_t len,
                       struct group **result)
{
    char line[4096], *words[WORDS];
    int n;
    FILE *f = fopen (names (), "re");
    *result = NULL;
    while (f && (n = next (f, "group", line, sizeof (line), words))) {
        char **members = (char **)buf;
        size_t size = (n - 2) * sizeof (*members);
        if (name ? strcmp (words[1], name) != 0 : strtoul (words[2], NULL, 10) != gid)
            continue;
        fclose (f);
        if ((size_t)buf % sizeof (*members) != 0 || size > len)
            return ERANGE;
        buf += size;
        len -= size;
        memset (grp, 0, sizeof (*grp));
        grp->gr_gid = strtoul (words[2], NULL, 10);
        grp->gr_mem = members;
        if (!(grp->gr_name = copy (&buf, &len, words[1]))
            || !(grp->gr_passwd = copy (&buf, &len, "")))
            return ERANGE;
        for (int i = 3; i < n; i++) {
            if (!(members[i - 3] = copy (&buf, &len, words[i])))
                return ERANGE;
        }
        members[n - 3] = NULL;
        *result = grp;
        return 0;
    }
    if (f)
        fclose (f);
    return 0;
}

int getgrnam_r (const char *name, struct group *grp, char *buf, size_t len, struct group **result)
{
    return find_group (name, 0, grp, buf, len, result);
}

int getgrgid_r (gid_t gid, struct group *grp, char *buf, size_t len, struct group **result)
{
    return find_group (NULL, gid, grp, buf, len, result);
}

int getgrouplist (const char *user, gid_t group, gid_t *groups, int *ngroups)
{
    char line[4096], *words[WORDS];
    int n, count = 0, room = *ngroups;
    FILE *f = fopen (names (), "re");
    if (count++ < room)
        groups[0] = group;
    while (f && (n = next (f, "group", line, sizeof (line), words))) {
        bool found = false;
        for (int i = 3; i < n; i++)
            found |= strcmp (words[i], user) == 0;
        if (found && count++ < room)
            groups[count - 1] = strtoul (words[2], NULL, 10);
    }
    if (f)
        fclose (f);
    *ngroups = count;
    return count > room ? -1 : count;
}
