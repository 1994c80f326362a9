/* SPDX-License-Identifier: GPL-2.0-only */
/* The Internet checksum (RFC 1071), over 32-bit words in whatever byte order: only a carry moves. */
#ifndef MIDSTREAM_CHECKSUM_H
#define MIDSTREAM_CHECKSUM_H

#include "bpf.h"
#include "packet.h"

/* RFC 9293, section 3.1: the data offset has four bits, so at most ten words of options follow. */
#define MAX_OPTION_WORDS 10

/* Does a sum of words, among them a checksum, say that they came unharmed? They do if it is 0xffff once it is folded to
 * 16 bits, that is a multiple of 65535 that is not 0. Exact divisors show by multiplication with their inverse
 * (Granlund and Montgomery, Division by Invariant Integers using Multiplication, section 9): -0x1000100010001 is
 * that of 65535 modulo 2^64, and 0x1000100010001 the largest quotient.
 */
static __always_inline bool is_right(__u64 sum)
{
	return sum && sum * -0x0001000100010001ULL <= 0x0001000100010001ULL;
}

static __always_inline __u64 sum_of_words(const void *data, const int words)
{
	const __u32 *word = data;
	__u64 sum = 0;

	for (int i = 0; i < words; i++)
		sum += word[i];
	return sum;
}

/* A sum of 32-bit words as a checksum. */
static __always_inline __u16 checksum_of(__u64 sum)
{
	sum = (sum & 0xffffffff) + (sum >> 32);
	sum = (sum & 0xffffffff) + (sum >> 32);
	return ~folded(folded(sum));
}

/* Are both checksums of the packet right, given the length of its payload and the sum over it? */
static __always_inline int is_intact_here(struct xdp_md *ctx, __u32 length, __u64 payload_sum)
{
	const void *end = (void *)(long)ctx->data_end;
	const struct headers *h = (void *)(long)ctx->data;
	const struct tcphdr *tcp = tcp_header(h);
	const struct iphdr *ip = ip_header(h);
	const __u32 *option = (const void *)(h + 1);
	__u64 sum = payload_sum;

	if ((const void *)(h + 1) > end || !is_right(sum_of_words(ip, sizeof(*ip) / 4)))
		return false;
	/* The pseudo-header: addresses, protocol, length of the segment. */
	sum += sum_of_words(&ip->saddr, 2) + bswap16(IPPROTO_TCP) + bswap16(length + tcp->doff * 4);
	sum += sum_of_words(tcp, sizeof(*tcp) / 4);
	if (tcp->doff == 8 && (const void *)(option + 3) <= end)
		return is_right(sum + sum_of_words(option, 3)); /* a timestamp: nearly every segment */
	for (int i = 0; i < MAX_OPTION_WORDS; i++, option++) {
		if (i >= tcp->doff - 5)
			break;
		if ((const void *)(option + 1) > end)
			return false;
		sum += *option;
	}
	return is_right(sum);
}

/* The same as a function, so that the verifier looks at its loop once and not on every path that leads here. */
__attribute__((noinline)) int is_intact(struct xdp_md *ctx, __u32 length, __u64 payload_sum)
{
	return is_intact_here(ctx, length, payload_sum);
}

#endif
