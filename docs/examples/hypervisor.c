/*
 * A hypervisor in 200 lines, with a mistake in it: docs/debugging.md finds it.
 *
 * It runs in 32-bit mode with 4 MiB pages and starts one guest, which asks for CPUID and halts.
 *
 *   gcc -m32 -g -O1 -ffreestanding -fno-pic -fno-stack-protector -mgeneral-regs-only -nostdlib -static \
 *       -Wl,-Ttext=0x100000 -Wl,--build-id=none hypervisor.c -o hypervisor.elf
 *   undervisor run --kernel hypervisor.elf
 */
typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

/* ---- multiboot header and entry ---- */
__asm__(".section .text.start, \"ax\"\n"
        ".align 4\n"
        ".long 0x1badb002, 0, -0x1badb002\n"
        ".global _start\n"
        "_start: movl $stack_top, %esp\n"
        "  call main\n"
        "1: hlt\n"
        "  jmp 1b\n"
        ".text\n");

#define PAGE __attribute__((aligned(4096)))
static u32 page_directory[1024] PAGE;
static u32 vmxon_region[1024] PAGE;
static u32 vmcs_region[1024] PAGE;
static u8 stack[8192] PAGE;
__asm__(".global stack_top\n.set stack_top, stack + 8192\n");
static u8 guest_stack[4096] PAGE;
static u8 tss[104];
static u64 gdt[4] = { 0, 0x00cf9b000000ffffull, 0x00cf93000000ffffull, 0 };

/* ---- instructions ---- */
static u64 rdmsr(u32 msr)
{
    u64 value;
    __asm__ volatile("rdmsr" : "=A"(value) : "c"(msr));
    return value;
}

static void wrmsr(u32 msr, u64 value)
{
    __asm__ volatile("wrmsr" : : "A"(value), "c"(msr));
}

static void vmwrite(u32 field, u32 value)
{
    __asm__ volatile("vmwrite %1, %0" : : "r"(field), "rm"(value) : "cc");
}

static u32 vmread(u32 field)
{
    u32 value;
    __asm__ volatile("vmread %1, %0" : "=rm"(value) : "r"(field) : "cc");
    return value;
}

static void put(char c)
{
    __asm__ volatile("outb %0, %1" : : "a"(c), "Nd"((u16)0x3f8));
}

static void print(const char *s)
{
    while (*s)
        put(*s++);
}

/* ---- the guest ---- */
static void guest(void)
{
    u32 eax = 0, ebx, ecx = 0, edx;
    __asm__ volatile("cpuid" : "+a"(eax), "=b"(ebx), "+c"(ecx), "=d"(edx));
    for (;;)
        __asm__ volatile("hlt");
}

/* ---- the hypervisor ---- */
void exit_handler(void)
{
    u32 reason = vmread(0x4402);
    if (reason == 10) { /* CPUID */
        print("exit: CPUID\n");
        vmwrite(0x681e, vmread(0x681e) + vmread(0x440c));
        __asm__ volatile("vmresume");
    } else if (reason == 12) { /* HLT */
        print("exit: HLT, all is well\n");
        __asm__ volatile("outl %0, %1" : : "a"(0), "Nd"((u16)0xf4));
    }
    for (;;)
        __asm__ volatile("hlt");
}

/* A control field: what we want, with the bits that the processor insists on. */
static void control(u32 field, u32 want, u32 msr)
{
    u64 allowed = rdmsr(msr);
    vmwrite(field, (want | (u32)allowed) & (u32)(allowed >> 32));
}

/* Selector, limit, access rights and base of a guest segment: ES, CS, SS, DS, FS, GS, LDTR, TR. */
static void segment(u32 index, u32 selector, u32 limit, u32 access, u32 base)
{
    vmwrite(0x0800 + 2 * index, selector);
    vmwrite(0x4800 + 2 * index, limit);
    vmwrite(0x4814 + 2 * index, access);
    vmwrite(0x6806 + 2 * index, base);
}

static void guest_segments(void)
{
    segment(1, 0x08, 0xffffffff, 0xc09b, 0);
    for (u32 index = 0; index < 6; index++)
        if (index != 1)
            segment(index, 0x10, 0xffffffff, 0xc093, 0);
    segment(6, 0, 0, 0x10000, 0);
    segment(7, 0x18, sizeof tss - 1, 0x89, (u32)tss);
}

static void guest_registers(u32 cr0, u32 cr3, u32 cr4)
{
    vmwrite(0x6800, cr0);
    vmwrite(0x6802, cr3);
    vmwrite(0x6804, cr4);
    vmwrite(0x681a, 0x400);
    vmwrite(0x681c, (u32)guest_stack + sizeof guest_stack);
    vmwrite(0x681e, (u32)guest);
    vmwrite(0x6820, 2);
    vmwrite(0x6816, (u32)gdt);
    vmwrite(0x4810, sizeof gdt - 1);
    vmwrite(0x2800, 0xffffffff); /* no VMCS link pointer */
    vmwrite(0x2801, 0xffffffff);
}

static void host_state(u32 cr0, u32 cr3, u32 cr4)
{
    vmwrite(0x6c00, cr0);
    vmwrite(0x6c02, cr3);
    vmwrite(0x6c04, cr4);
    vmwrite(0x0c02, 0x08);
    for (u32 field = 0x0c00; field <= 0x0c0a; field += 2)
        if (field != 0x0c02)
            vmwrite(field, 0x10);
    vmwrite(0x0c0c, 0x18);
    vmwrite(0x6c0a, (u32)tss);
    vmwrite(0x6c0c, (u32)gdt);
    vmwrite(0x6c14, (u32)stack + sizeof stack);
    vmwrite(0x6c16, (u32)exit_handler);
}

void main(void)
{
    u32 cr0, cr4, base = (u32)tss;
    u64 pointer;

    /* Our own GDT with a TSS, identity paging, VMX. */
    gdt[3] = 0x0000890000000067ull | (u64)(base & 0xffffff) << 16 | (u64)(base >> 24) << 56;
    struct { u16 limit; u32 base; } __attribute__((packed)) gdtr = { sizeof gdt - 1, (u32)gdt };
    __asm__ volatile("lgdt %0; ltr %w1; ljmp $8, $1f; 1: mov %w2, %%ds; mov %w2, %%es; mov %w2, %%ss"
                     : : "m"(gdtr), "r"(0x18), "r"(0x10) : "memory");
    for (u32 i = 0; i < 1024; i++)
        page_directory[i] = i << 22 | 0x83;
    __asm__ volatile("mov %%cr4, %0" : "=r"(cr4));
    cr4 |= 0x2010; /* VMXE, PSE */
    __asm__ volatile("mov %0, %%cr4; mov %1, %%cr3" : : "r"(cr4), "r"(page_directory) : "memory");
    __asm__ volatile("mov %%cr0, %0" : "=r"(cr0));
    cr0 |= 0x80000020; /* PG, NE */
    __asm__ volatile("mov %0, %%cr0" : : "r"(cr0) : "memory");
    if (!(rdmsr(0x3a) & 1))
        wrmsr(0x3a, rdmsr(0x3a) | 5);

    vmxon_region[0] = vmcs_region[0] = (u32)rdmsr(0x480) & 0x7fffffff;
    pointer = (u32)vmxon_region;
    __asm__ volatile("vmxon %0" : : "m"(pointer) : "memory", "cc");
    pointer = (u32)vmcs_region;
    __asm__ volatile("vmclear %0; vmptrld %0" : : "m"(pointer) : "memory", "cc");

    control(0x4000, 0, 0x481);
    control(0x4002, 1 << 7, 0x482); /* HLT exiting */
    control(0x400c, 0, 0x483);
    control(0x4012, 0, 0x484);
    host_state(cr0, (u32)page_directory, cr4);
    guest_registers(cr0, (u32)page_directory, cr4);
    guest_segments();
    print("starting the guest\n");
    __asm__ volatile("vmlaunch" : : : "memory", "cc");
    /* Only reached if it failed; surely it never does. */
    for (;;)
        __asm__ volatile("hlt");
}
