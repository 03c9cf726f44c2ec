/*
 * Preloaded into linux.uml 6.1: lets it run on CPUs whose extended register state is larger than it thinks.
 *
 * UML keeps a process's floating point state in a fixed buffer of 2696 bytes (enough for AVX-512) and moves it with
 * PTRACE_GETREGSET and PTRACE_SETREGSET. On a CPU with AMX the state has some 11 KB; the host's kernel refuses to set
 * a part of it (EFAULT or EINVAL), and the node panics at its first process ("put_fp_registers failed"). So: get all
 * of it, pass on what UML has room for, and when it sets its part put that into the whole. What is beyond (the AMX
 * tiles) stays as it is in the process; nobody in a node uses it.
 *
 * On any other CPU nothing changes: the state fits, and the whole is what UML sets.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <elf.h>
#include <string.h>
#include <sys/types.h>
#include <sys/uio.h>

enum { GETREGSET = 0x4204, SETREGSET = 0x4205 };

long ptrace(long request, pid_t pid, void *addr, void *data)
{
	long (*real)(long, pid_t, void *, void *) = dlsym(RTLD_NEXT, "ptrace");
	if ((request != GETREGSET && request != SETREGSET) || (long)addr != NT_X86_XSTATE)
		return real(request, pid, addr, data);
	/* static: UML's kernel calls this from one thread at a time, on a small stack */
	static char buf[64 * 1024] __attribute__((aligned(64)));
	struct iovec *uml = data, all = { buf, sizeof buf };
	long r = real(GETREGSET, pid, addr, &all);
	if (r < 0)
		return r;
	size_t n = uml->iov_len < all.iov_len ? uml->iov_len : all.iov_len;
	if (request == SETREGSET) {
		memcpy(buf, uml->iov_base, n);
		return real(SETREGSET, pid, addr, &all);
	}
	memcpy(uml->iov_base, buf, n);
	uml->iov_len = n;
	return r;
}
